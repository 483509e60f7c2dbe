"""What one step computes, and what comes of it. Plain values, the whole language between engine and executor.

None is to be changed once made. Those made for every row are not frozen, because that triples what making them takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_plane.engine.outputs import TokenLogprobs
from data_plane.engine.sampling import SamplingParams


@dataclass(slots=True)
class Row:
    """The tokens of one request that this step computes: positions `start` to `start + len(tokens)` of its sequence.

    `blocks`: the ids of its KV blocks in the order of its tokens, enough for `stop`, nowhere near each other.
    `wants_token`: choose a token after the last one. `num_drafts`: the last so many of `tokens` are guesses; choose a
    token after `tokens[-1 - num_drafts]`, and, as long as a guess equals the token chosen for its place, after it too.
    `prompt_targets`: for each of the first tokens of this row, the prompt token that follows it and whose
    log-probability is wanted; `num_skipped_targets` tokens come before the first of them.
    """

    request_id: str
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    params: SamplingParams
    seed: int
    wants_token: bool
    num_drafts: int = 0
    forbidden_ids: frozenset[int] = frozenset()
    """Tokens that would end the request before `min_tokens`."""
    output_counts: Mapping[int, int] | None = None
    """How often each token was generated; None where no penalty asks."""
    prompt_ids: frozenset[int] = frozenset()
    """The prompt's distinct tokens, where a repetition penalty asks."""
    prompt_targets: Sequence[int] = ()
    num_skipped_targets: int = 0

    @property
    def stop(self) -> int:
        """The position after the last token: also the length of the context, and where a new token would stand."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step, decodes first."""

    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(len(row.tokens) for row in self.rows)

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass(slots=True)
class Token:
    """A chosen token. The one at position p follows from the logits, the request's parameters, its seed and p alone."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(slots=True)
class Sampled:
    """What a row gave: where it wants a token, one more than it has accepted guesses, else none.

    `error` is a sentence where this row alone failed (its logits were not numbers).
    """

    tokens: tuple[Token, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None
