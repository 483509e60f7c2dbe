"""Runs batches of the engine on a device: `load` turns an artifact into an executor.

On a CPU that the native decoder serves, nothing here imports torch: that takes longer than all the rest of a start.
Importing this package sets how long OpenMP's threads spin for each other (unless the environment says so already), and
must come before the first import of torch for that to count.
"""

import os
from collections.abc import Callable
from pathlib import Path

from data_plane.execution import native_loading
from data_plane.execution.loaded import Loaded

# Left to itself libgomp spins for milliseconds at the end of every operator. With two other busy processes on two cores
# a start then took 6 s and a decode step 1.1 s, against 0.6 s and 0.1 s with this; alone it costs 3 to 12 % of a step.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__all__ = ["Loaded", "load"]


def load(
    artifact_dir: Path,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    max_model_len: int = 0,
    max_num_seqs: int = 32,
    max_num_batched_tokens: int = 512,
    kv_cache_bytes: int = 0,
    threads: int = 0,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Loaded:
    """Loads, sizes the KV cache and warms up; calls `on_phase("loading")`, then `on_phase("warming")`.

    `max_model_len` 0: the model's own; `kv_cache_bytes` 0: by the memory that is free; `threads` 0: all cores.
    ValueError (ArtifactError) says what is wrong with the artifact or with the numbers.
    """
    chosen = native_loading.load if native_loading.serves(artifact_dir, device, dtype) else _load_with_torch
    return chosen(
        artifact_dir,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_bytes=kv_cache_bytes,
        threads=threads,
        on_phase=on_phase,
    )


def _load_with_torch(
    artifact_dir: Path,
    *,
    device: str,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    kv_cache_bytes: int,
    threads: int,
    on_phase: Callable[[str], None],
) -> Loaded:
    from data_plane.execution import loading

    return loading.load(
        artifact_dir,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_bytes=kv_cache_bytes,
        threads=threads,
        on_phase=on_phase,
    )
