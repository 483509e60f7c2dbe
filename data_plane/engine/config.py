"""The engine's own limits. Knows nothing of the model but these numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`max_num_batched_tokens` is the one budget of a step; lengths are in tokens, `num_blocks` in KV blocks."""

    max_model_len: int
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    block_size: int = 16
    num_blocks: int = 1024
    eos_token_ids: frozenset[int] = frozenset()
