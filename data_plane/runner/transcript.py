"""One answer as it grows: the engine's tokens become text, log-probabilities with offsets, and a reason to end.

Knows nothing of JSON shapes or the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_plane.engine.outputs import Output, TokenLogprobs
from data_plane.runner.detokenizer import Detokenizer, StopStrings
from data_plane.runner.tokenizer import Tokenizer
from data_plane.wire.openai_answers import FinishReason


@dataclass(frozen=True, slots=True)
class Entry:
    """One token of a logprobs block. `offset` is where its text begins, in characters."""

    token_id: int
    offset: int
    logprobs: TokenLogprobs | None
    is_stop: bool = False


@dataclass(slots=True)
class Delta:
    """What came since the last one was taken."""

    text: str = ""
    entries: list[Entry] = field(default_factory=list[Entry])
    finish_reason: FinishReason | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.entries or self.finish_reason)


class Transcript:
    """Feed it a request's outputs, take deltas from it as often as the reader can read."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], *, skip_special_tokens: bool = True, offset: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._texts = list(stops)
        self._skip_special_tokens = skip_special_tokens
        self._offset = offset
        self._detokenizer = Detokenizer(tokenizer.token_bytes)
        self._stops = StopStrings(stops)
        self._decoded = self._shown = offset
        self._waiting: list[Entry] = []
        self._pending = Delta()
        self._num_entries = 0
        self._silent_text = self._silent_entries = self._silent_news = 0
        self._news: list[int] = []
        self.engine_reason: FinishReason | None = None
        """How the engine ended it, if it did; a stop text may have ended it as well, or before."""
        self.finish_reason: FinishReason | None = None
        self.completion_tokens = 0
        self.cached_tokens = 0

    def feed(self, output: Output) -> None:
        """Takes one output in. Once `finish_reason` is set, more of them change nothing."""
        if self.finish_reason is not None:
            return
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        if output.finish_reason in ("stop", "length"):
            self.engine_reason = output.finish_reason
        if output.token_id is not None:
            self.completion_tokens += 1
            self._news.append(output.token_id)
            self._add(output.token_id, output.logprobs, is_stop=output.finish_reason == "stop")
        if self._stops.stopped:
            self._finish("stop")
        elif output.finish_reason in ("stop", "length"):
            rest = self._detokenizer.finish()
            self._show(self._stops.feed(rest) + self._stops.finish())
            self._finish("stop" if self._stops.stopped else output.finish_reason)

    def take(self) -> Delta:
        """What may be shown and was not taken yet."""
        taken, self._pending = self._pending, Delta()
        if self._silent_text or self._silent_entries:
            text, entries = taken.text, taken.entries
            taken.text, taken.entries = text[self._silent_text :], entries[self._silent_entries :]
            self._silent_text -= len(text) - len(taken.text)
            self._silent_entries -= len(entries) - len(taken.entries)
        return taken

    def take_news(self) -> list[int]:
        """The tokens fed since this was last asked."""
        known = min(self._silent_news, len(self._news))
        taken, self._news = self._news[known:], []
        self._silent_news -= known
        return taken

    def fresh(self) -> "Transcript":
        """One of the same answer that has heard nothing yet."""
        skip = self._skip_special_tokens
        return Transcript(self._tokenizer, self._texts, skip_special_tokens=skip, offset=self._offset)

    def show_from(self, other: "Transcript") -> None:
        """What `other`, of the same answer, may show by now was shown already: this one leaves it out, whenever it
        comes to it."""
        self._silent_text = other._shown - self._offset
        self._silent_entries = other._num_entries
        self._silent_news = other.completion_tokens - self.completion_tokens

    @property
    def num_waiting(self) -> int:
        """Tokens fed whose text is held back."""
        return len(self._waiting)

    def _add(self, token_id: int, logprobs: TokenLogprobs | None, *, is_stop: bool) -> None:
        self._waiting.append(Entry(token_id, self._decoded, logprobs, is_stop))
        if is_stop or (self._skip_special_tokens and token_id in self._tokenizer.special):
            return
        text = self._detokenizer.feed(token_id)
        self._decoded += len(text)
        self._show(self._stops.feed(text))

    def _show(self, text: str) -> None:
        self._pending.text += text
        self._shown += len(text)
        ready = 0
        while ready < len(self._waiting) and self._waiting[ready].offset < self._shown:
            ready += 1
        self._pending.entries += self._waiting[:ready]
        self._num_entries += ready
        del self._waiting[:ready]

    def _finish(self, reason: FinishReason) -> None:
        # tokens that only spelled a stop string are not part of the answer
        if not self._stops.stopped:
            self._pending.entries += self._waiting
            self._num_entries += len(self._waiting)
        self._waiting.clear()
        self.finish_reason = self._pending.finish_reason = reason
