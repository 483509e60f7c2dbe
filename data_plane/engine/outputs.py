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
class Output:
    """A token, an end, or both, of one request.

    `token_id` is None where the request ended without a new token (aborted, failed, or max_tokens was 0).
    `prompt_logprobs` comes once, with the first output: one entry per prompt token, None for the first.
    `error` is a sentence when `finish_reason` is "error". A stop token is reported (with reason "stop"), never hidden:
    whoever makes text of it leaves it out.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int = 0
    error: str | None = None
