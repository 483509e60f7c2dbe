"""What comes out of the engine for one request at one step. Plain values."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities at one position: the token's own, and the most likely ones, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """How a request came to its first token: seconds in the queue, seconds from there, prompt tokens already cached."""

    queue_s: float
    prefill_s: float
    cached_tokens: int


@dataclass(slots=True)
class Output:
    """A token, an end, or both, of one request. A step may give several of one request, in their order.

    `token_id` is None where the request ended without a new token (aborted, failed, or max_tokens was 0).
    `start` and `prompt_logprobs` come once, with the first output of a request that got so far; `prompt_logprobs` has
    one entry per prompt token, None for the first. `error` is a sentence when `finish_reason` is "error". A stop token
    is reported (with reason "stop"), never hidden: whoever makes text of it leaves it out. Not to be changed; unfrozen
    because a frozen one takes three times as long to make, and there is one for each token.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int = 0
    error: str | None = None
    start: Start | None = None
