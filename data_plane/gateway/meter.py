"""What one answer used, in tokens: estimated before it begins, counted while it runs, told by the runner at its end.

A runner ends each stream with the comment `: usage PROMPT COMPLETION CACHED` (before `[DONE]`); clients do not see it.
Where an answer ends without it, its bytes tell about how many tokens were relayed: counting events would cost more than
relaying them. Knows nothing of keys or limits.
"""

import math

import msgspec

from data_plane.wire.openai import ChatRequest, CompletionRequest

BYTES_PER_TOKEN = 4
EVENT_BYTES = 200
"""Of a chunk with one token."""
DEFAULT_COMPLETION = 256
"""What a chat that names no limit is taken to make, until it has made it."""
_COMMENT = b"\n: usage "
_TAIL_BYTES = 80
"""The comment and `[DONE]` are the last things of a stream: only so much of each chunk is looked at."""
_DONE = b"[DONE]\n\n"
_DIGITS = tuple(b"0123456789"[digit : digit + 1] for digit in range(10))


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    total_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct, frozen=True):
    usage: _Usage = _Usage()


_ANSWER = msgspec.json.Decoder(_Answer)


class Meter:
    """Of one request. `estimate` is what it is expected to take, `used` what it took as far as is known."""

    def __init__(self, prompt: int, completion: int) -> None:
        self.prompt = prompt
        self.estimate = max(1, prompt + completion)
        self._relayed_bytes = 0
        self._told: tuple[int, int, int] | None = None  # of all, of the answer, of the prompt what was cached

    @classmethod
    def of(cls, request: ChatRequest | CompletionRequest, body_bytes: int, context: int) -> "Meter":
        """Before anything is known of the answer: a token for four bytes, and the most that may be made."""
        prompts = 1
        if isinstance(request, CompletionRequest) and not isinstance(request.prompt, str):
            prompts = len(request.prompts)
        limit = DEFAULT_COMPLETION if request.limit is None else min(request.limit, context)
        return cls(body_bytes // BYTES_PER_TOKEN, limit * request.choices * prompts)

    @property
    def used(self) -> int:
        """Tokens of prompt and answer so far."""
        if self._told is not None:
            return self._told[0]
        return self.prompt + math.ceil(self._relayed_bytes / EVENT_BYTES) if self._relayed_bytes else 0

    @property
    def completed(self) -> int:
        """Tokens of the answer so far."""
        return math.ceil(self._relayed_bytes / EVENT_BYTES) if self._told is None else self._told[1]

    def counts(self) -> tuple[int, int, int]:
        """Tokens so far: of the prompt, what was cached of it, of the answer. Without an answer nothing is known."""
        if self._told is not None:
            whole, completed, cached = self._told
            return whole - completed, cached, completed
        return (self.prompt, 0, self.completed) if self._relayed_bytes else (0, 0, 0)

    def relay(self, events: bytes) -> bytes:
        """Whole events on their way to the client: what is to be passed on of them."""
        self._relayed_bytes += len(events)
        if not events.endswith(_DONE) and not events.endswith(_DIGITS, None, -2):
            return events
        at = events.rfind(_COMMENT, max(0, len(events) - _TAIL_BYTES)) + 1
        if not at and not events.startswith(_COMMENT[1:]):
            return events
        end = events.find(b"\n\n", at) + 2
        self._told = _counts(events[at + len(_COMMENT) - 1 : end])
        return events[:at] + events[end:]

    def whole(self, body: bytes) -> None:
        """A whole answer on its way to the client."""
        try:
            usage = _ANSWER.decode(body).usage
            details = usage.prompt_tokens_details
            cached = 0 if details is None else details.cached_tokens
            self._told = usage.total_tokens, usage.completion_tokens, cached
        except msgspec.DecodeError:  # an error, or an answer that tells no usage: the client gets it as it is
            self._told = None


def _counts(words: bytes) -> tuple[int, int, int] | None:
    try:
        prompt, completion, cached, *_ = (*(int(word) for word in words.split()[:3]), 0, 0, 0)
        return prompt + completion, completion, cached
    except ValueError:  # no comment of ours after all: counting goes on
        return None
