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
        self._skip_special_tokens = skip_special_tokens
        self._detokenizer = Detokenizer(tokenizer.token_bytes)
        self._stops = StopStrings(stops)
        self._decoded = self._shown = offset
        self._waiting: list[Entry] = []
        self._pending = Delta()
        self.finish_reason: FinishReason | None = None
        self.completion_tokens = 0
        self.cached_tokens = 0

    def feed(self, output: Output) -> None:
        """Takes one output in. Once `finish_reason` is set, more of them change nothing."""
        if self.finish_reason is not None:
            return
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        if output.token_id is not None:
            self.completion_tokens += 1
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
        return taken

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
        del self._waiting[:ready]

    def _finish(self, reason: FinishReason) -> None:
        # tokens that only spelled a stop string are not part of the answer
        if not self._stops.stopped:
            self._pending.entries += self._waiting
        self._waiting.clear()
        self.finish_reason = self._pending.finish_reason = reason
