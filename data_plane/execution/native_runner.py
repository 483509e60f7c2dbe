"""Runs batches in the native decoder: one call a step, tokens chosen included. Knows nothing of queues or of text.

A token's logits are the same bits whatever is computed beside it and in whatever chunks its prompt came, in every
quantization: the decoder's kernels promise it. So batching, prefix cache, preemption and speculation change no answer.
"""

import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_plane.engine.batch import Batch, Row, Sampled, Token
from data_plane.engine.outputs import TokenLogprobs
from data_plane.execution.loaded import NUMERICAL_ERROR
from data_plane.execution.noise import uniform
from kernels.cpu.decoder import GREEDY, Decoder, StepInput, StepResult


class NativeRunner:
    """The engine's executor on a CPU."""

    def __init__(
        self, decoder: Decoder, pages: mmap.mmap | None = None, kv: npt.NDArray[np.uint8] | None = None, form: str = ""
    ) -> None:
        """`pages`: the memory of the decoder's KV cache, if it is to be given back at times. `kv`: the same as bytes
        [layers, blocks, -1], if blocks are to be copied, and `form`: see `CopyingExecutor.kv_form`."""
        self.decoder = decoder
        self._pages = pages
        self._kv = kv
        self.kv_form = form
        self.block_bytes = 0 if kv is None else kv.shape[0] * kv.shape[2]

    def copy_out(self, block: int) -> bytes:
        """What a block holds: layer after layer."""
        assert self._kv is not None, "this runner has no block_bytes"
        return self._kv[:, block].tobytes()

    def copy_in(self, block: int, content: bytes) -> None:
        """Makes a block hold what `copy_out` gave. No batch may be running that uses it."""
        assert self._kv is not None, "this runner has no block_bytes"
        self._kv[:, block] = np.frombuffer(content, dtype=np.uint8).reshape(self._kv.shape[0], -1)

    def give_back(self) -> None:
        """The kernel takes the cache's pages, and gives cleared ones when they are next touched."""
        if self._pages is not None and hasattr(mmap, "MADV_REMOVE"):
            self._pages.madvise(mmap.MADV_REMOVE)

    def take_back(self) -> None:
        """There is nothing to do: see `give_back`."""

    def run(self, batch: Batch) -> list[Sampled]:
        """One result for each row, in order."""
        return self.compute(batch, self.pack(batch))

    def pack(self, batch: Batch) -> StepInput:
        """The batch as the decoder takes it."""
        builder = _Builder()
        for row in batch.rows:
            builder.add(row)
        return builder.work

    def compute(self, batch: Batch, packed: StepInput) -> list[Sampled]:
        """One result for each row of `batch`, whose `pack` is `packed`."""
        return _Reader(self.decoder.step(packed)).read(batch.rows)


class _Builder:
    """The arrays of a step, filled row by row."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.rows: list[tuple[int, int, int, int]] = []
        self.blocks: list[int] = []
        self.logit_tokens: list[int] = []
        self.choices: list[tuple[float | int, ...]] = []
        self.changes: list[tuple[int, float]] = []
        self.seen: list[int] = []

    @property
    def work(self) -> StepInput:
        return StepInput(
            self.token_ids, self.rows, self.blocks, self.logit_tokens, self.choices, self.changes, self.seen
        )

    def add(self, row: Row) -> None:
        first = len(self.token_ids)
        self.rows.append((first, len(row.tokens), row.start, len(self.blocks)))
        self.token_ids.extend(row.tokens)
        self.blocks.extend(row.blocks)
        if row.prompt_targets:
            start = first + row.num_skipped_targets
            count = row.params.prompt_logprobs or 0
            self.logit_tokens.extend(range(start, start + len(row.prompt_targets)))
            self.choices.extend(
                (0.0, 1.0, 0.0, 1.0, 0, count, 0.0, target, 0, 0, 0, 0) for target in row.prompt_targets
            )
        if row.wants_token:
            last = first + len(row.tokens)
            self.logit_tokens.extend(range(last - 1 - row.num_drafts, last))
            self.choices.extend(self._choice(row, at) for at in range(row.stop - row.num_drafts, row.stop + 1))

    def _choice(self, row: Row, position: int) -> tuple[float | int, ...]:
        params = row.params
        is_plain = row.output_counts is None and not row.forbidden_ids and not params.logit_bias
        if is_plain and params.temperature == 0 and params.logprobs is None:
            return GREEDY
        first_change, first_seen = len(self.changes), len(self.seen)
        if not is_plain:
            self._adjust(row)
        return (
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.top_k,
            -1 if params.logprobs is None else params.logprobs,
            uniform(row.seed, position) if params.temperature > 0 else 0.0,
            -1,
            first_change,
            len(self.changes) - first_change,
            first_seen,
            len(self.seen) - first_seen,
        )

    def _adjust(self, row: Row) -> None:
        params, counts = row.params, row.output_counts or {}
        if params.repetition_penalty != 1:
            self.seen.extend(row.prompt_ids | set(counts))
        if params.presence_penalty or params.frequency_penalty:
            self.changes.extend(
                (token, -params.presence_penalty - params.frequency_penalty * count) for token, count in counts.items()
            )
        self.changes.extend(params.logit_bias.items())
        self.changes.extend((token, float("-inf")) for token in row.forbidden_ids)


class _Reader:
    """Takes results apart in the order in which `_Builder` asked for them."""

    def __init__(self, result: StepResult) -> None:
        self._result = result
        self._chosen: list[int] = result.chosen.tolist()
        self._at = 0

    def read(self, rows: Sequence[Row]) -> list[Sampled]:
        return [self._row(row) for row in rows]

    def _row(self, row: Row) -> Sampled:
        first = self._at
        targets = len(row.prompt_targets)
        places = row.num_drafts + 1 if row.wants_token else 0
        self._at = first + targets + places
        if -1 in self._chosen[first : first + targets]:
            return Sampled(error=NUMERICAL_ERROR)
        prompt = tuple(self._logprobs(at, row.params.prompt_logprobs or 0) for at in range(first, first + targets))
        tokens: list[Token] = []
        for place in range(places):
            at = first + targets + place
            token = self._chosen[at]
            if token < 0:
                return Sampled(tuple(tokens), prompt, None) if tokens else Sampled(error=NUMERICAL_ERROR)
            wanted = row.params.logprobs
            tokens.append(Token(token, None if wanted is None else self._logprobs(at, wanted)))
            guess = place - row.num_drafts
            if guess < 0 and row.tokens[guess] != token:
                break
        return Sampled(tuple(tokens), prompt)

    def _logprobs(self, at: int, count: int) -> TokenLogprobs:
        result = self._result
        ids: list[int] = result.top_ids[at, :count].tolist()
        values: list[float] = result.top_logprobs[at, :count].tolist()
        return TokenLogprobs(self._chosen[at], float(result.logprob[at]), tuple(zip(ids, values, strict=True)))
