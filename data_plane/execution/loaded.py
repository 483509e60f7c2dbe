"""What loading a model takes and gives, whichever path runs it. Imports no torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Executor
from data_plane.execution.cache_plan import plan_cache
from data_plane.weights.layout import ModelConfig

BLOCK_SIZE = 16
"""Tokens a KV block."""

NUMERICAL_ERROR = (
    "numerical_error: the model's logits for this request are not finite numbers, so no token can be chosen; "
    "other requests are not affected."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """`max_model_len` 0: the model's own; `kv_cache_bytes` 0: by the memory that is free; `threads` 0: all cores."""

    device: str = "cpu"
    dtype: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    kv_cache_bytes: int = 0
    threads: int = 0
    overlap: bool | None = None
    """On a CPU: whether the engine prepares a step while the one before it runs. None: where a core is left for it."""

    @property
    def num_threads(self) -> int:
        """Threads of a CPU."""
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def overlaps(self) -> bool:
        """Whether the host works beside the threads that compute.

        It hides 0.02, 0.03 and 0.06 ms of a step at 1, 8 and 32 streams. With two computing threads on two cores (AVX2,
        one layer and the head of a 135M model in int4, plain and overlapped steps in turns) the steps of 2.5, 9.7 and
        36.6 ms became 0.011 ± 0.011, 0.036 ± 0.040 and 0.17 ± 0.29 ms longer: the core that it takes costs it all.
        """
        return self.num_threads < len(os.sched_getaffinity(0)) if self.overlap is None else self.overlap


def size_engine(
    model: ModelConfig, options: LoadOptions, bytes_per_token: int, free_bytes: Callable[[int], int]
) -> EngineConfig:
    """The engine's limits, with as many KV blocks as there is memory for.

    `bytes_per_token`: of keys and values, over all layers. `free_bytes` is given the context's length and says what the
    cache may take where the options do not. ValueError, with the numbers, where that is not one block.
    """
    longest = model.max_position_embeddings
    length = min(options.max_model_len or longest, longest)
    plan = plan_cache(
        bytes_per_token=bytes_per_token,
        block_size=BLOCK_SIZE,
        max_model_len=length,
        max_num_seqs=options.max_num_seqs,
        kv_cache_bytes=options.kv_cache_bytes,
        free_bytes=free_bytes(length),
    )
    return EngineConfig(
        max_model_len=plan.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=max(options.max_num_batched_tokens, options.max_num_seqs),
        block_size=BLOCK_SIZE,
        num_blocks=plan.num_blocks,
        eos_token_ids=frozenset(model.eos_token_ids),
        vocab_size=model.vocab_size,
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine needs, and what the model is. `path`: which kernels run it, for people to read."""

    executor: Executor
    config: EngineConfig
    model_config: ModelConfig
    path: str = "torch"
