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
    enable_prefix_caching: bool = True
    max_itl_growth: float = 2.5
    """A step that decodes takes so many prompt tokens too that it lasts at most this many times as long."""
    num_speculative_tokens: int = 8
    """The most tokens guessed ahead for one request in one step. 0: none."""
    max_speculative_batch: int = 16
    """No guesses where a step would have more tokens with them: then checking costs as much as decoding."""

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        for name in ("num_speculative_tokens", "max_speculative_batch"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} is {value}; it must not be negative.")
        if self.max_itl_growth <= 1:
            raise ValueError(f"max_itl_growth is {self.max_itl_growth}; it must be over 1, or no prompt gets on.")
        # every running request may decode in every step, so none of them waits for the budget
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}); "
                "raise it to at least that."
            )
