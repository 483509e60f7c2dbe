"""An executor with a KV memory of integers: its tokens depend on everything read back through the block table."""

import zlib

from data_plane.engine.batch import Batch, Row, Sampled, Token
from data_plane.engine.outputs import TokenLogprobs

VOCAB = 50


class MemoryExecutor:
    """A row whose blocks were lost, shared or mixed up gets another token than the same request run alone.

    `repeats`: most tokens follow from the two before them, so that texts repeat themselves and guesses can be right.
    Its clock is `now`: a step takes 1 ms, and 0.1 ms for each token.
    """

    def __init__(self, num_blocks: int, block_size: int, *, repeats: bool = False) -> None:
        self.block_size = block_size
        self.repeats = repeats
        self.memory = [-1] * (num_blocks * block_size)
        self.budgets: list[int] = []
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def run(self, batch: Batch) -> list[Sampled]:
        self.budgets.append(batch.num_tokens)
        self.now += 1e-3 + 1e-4 * batch.num_tokens
        for row in batch.rows:
            for offset, token in enumerate(row.tokens):
                self.memory[self._slot(row, row.start + offset)] = token
        return [self._sample(row) for row in batch.rows]

    def _slot(self, row: Row, position: int) -> int:
        block, offset = divmod(position, self.block_size)
        return row.blocks[block] * self.block_size + offset

    def _sample(self, row: Row) -> Sampled:
        context = [self.memory[self._slot(row, position)] for position in range(row.stop)]
        first = row.start + row.num_skipped_targets
        prompt = tuple(
            TokenLogprobs(token, -float(self._digest(row.seed, context[: first + at + 1])))
            for at, token in enumerate(row.prompt_targets)
        )
        if not row.wants_token:
            return Sampled(prompt_logprobs=prompt)
        tokens: list[Token] = []
        for length in range(row.stop - row.num_drafts, row.stop + 1):
            tokens.append(Token(self._choose(row, context[:length])))
            if length < row.stop and context[length] != tokens[-1].token_id:
                break
        return Sampled(tuple(tokens), prompt)

    def _choose(self, row: Row, context: list[int]) -> int:
        token = self._digest(row.seed, context)
        if self.repeats and token % 16:
            token = self._digest(row.seed, context[-2:]) % 6
        token %= VOCAB
        while token in row.forbidden_ids:
            token = (token + 1) % VOCAB
        return token

    @staticmethod
    def _digest(seed: int, context: list[int]) -> int:
        return zlib.crc32(repr((seed, context)).encode())
