"""Executors without a model: the token of a row is a function of its seed and position, so any test can predict it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from data_plane.engine.batch import Batch, Row, Sampled, Token
from data_plane.engine.outputs import TokenLogprobs


def fake_token(seed: int, position: int, vocab_size: int = 1000) -> int:
    """The token that stands at `position` (counted from the start of the prompt) for a request with this seed."""
    return (seed * 2654435761 + position * 40503 + (seed ^ position)) % vocab_size


@dataclass
class FakeExecutor:
    """Answers `fake_token`. Delays are per step and per token; `fail_on` may return what the step shall raise.

    `broken_ids`: rows of these requests give an error, as logits that are not numbers do.
    """

    vocab_size: int = 1000
    step_delay_s: float = 0.0
    token_delay_s: float = 0.0
    fail_on: Callable[[Batch], Exception | None] | None = None
    broken_ids: set[str] = field(default_factory=set[str])
    choose: Callable[[Row, int], int] | None = None
    """Replaces `fake_token`, for a test that needs certain tokens: the one at this position of this row's sequence."""
    batches: list[Batch] = field(default_factory=list[Batch])

    def run(self, batch: Batch) -> list[Sampled]:
        self.batches.append(batch)
        time.sleep(self.step_delay_s + self.token_delay_s * batch.num_tokens)
        if self.fail_on is not None and (error := self.fail_on(batch)) is not None:
            raise error
        return [self._sample(row) for row in batch.rows]

    def _sample(self, row: Row) -> Sampled:
        if row.request_id in self.broken_ids:
            return Sampled(error="numerical_error: the logits of this request are not finite numbers.")
        wanted = row.params.prompt_logprobs
        prompt = tuple(_logprobs(token, wanted or 0, self.vocab_size) for token in row.prompt_targets)
        if not row.wants_token:
            return Sampled(prompt_logprobs=prompt)
        tokens: list[Token] = []
        for guess in (*row.tokens[len(row.tokens) - row.num_drafts :], None):
            tokens.append(self._token(row, row.stop - row.num_drafts + len(tokens)))
            if guess != tokens[-1].token_id:
                break
        return Sampled(tuple(tokens), prompt)

    def _token(self, row: Row, position: int) -> Token:
        token = self.choose(row, position) if self.choose else fake_token(row.seed, position, self.vocab_size)
        while token in row.forbidden_ids:
            token = (token + 1) % self.vocab_size
        count = row.params.logprobs
        return Token(token, None if count is None else _logprobs(token, count, self.vocab_size))


def _logprobs(token: int, count: int, vocab_size: int) -> TokenLogprobs:
    top: Sequence[tuple[int, float]] = [((token + rank) % vocab_size, -0.1 - rank) for rank in range(count)]
    return TokenLogprobs(token, -0.1, tuple(top))
