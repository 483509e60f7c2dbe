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
    vocab_size: int = 0
    """Token ids at or above it are refused. 0: not checked."""

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        # every running request may decode in every step, so none of them waits for the budget
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}); "
                "raise it to at least that."
            )
