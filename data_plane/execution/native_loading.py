"""From an artifact's folder to an executor of the native CPU decoder. Imports no torch: that is most of a start."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_plane.engine.config import EngineConfig
from data_plane.execution.cache_plan import CachePlan, free_cpu_bytes, plan_cache
from data_plane.execution.loaded import BLOCK_SIZE, Loaded
from data_plane.execution.native_model import ArtifactSource, NativeWeights, Source, fits, read_weights
from data_plane.execution.native_runner import NativeRunner
from data_plane.execution.warm_up import warm_up
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig
from data_plane.weights.mapped import open_mapped
from kernels.cpu.decoder import Array, Decoder, Shape
from kernels.cpu.library import backend_name

DTYPES = ("auto", "bfloat16", "float32")
"""Sums are float32 in any case: the dtype says how keys and values are kept, and `auto` is bfloat16."""
TORCH_VARIABLE = "EBB_CPU_PATH"


def serves(artifact_dir: Path, device: str, dtype: str) -> bool:
    """Whether the native decoder is built, and made for this model, device and dtype. `EBB_CPU_PATH=torch`: no."""
    if device != "cpu" or dtype not in DTYPES or os.environ.get(TORCH_VARIABLE) == "torch" or not backend_name():
        return False
    try:
        artifact = open_mapped(artifact_dir)
    except ArtifactError:
        # whoever loads it says what is wrong
        return True
    return fits(artifact.config, artifact.forms)


def load(
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
    """As `data_plane.execution.load`, for what `serves` says yes to."""
    assert device == "cpu", device
    on_phase("loading")
    artifact = open_mapped(artifact_dir)
    loaded = build(
        artifact.config,
        ArtifactSource(artifact),
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_bytes=kv_cache_bytes,
        threads=threads,
    )
    on_phase("warming")
    warm_up(loaded.executor, loaded.config)
    return loaded


def build(
    config: ModelConfig,
    source: Source,
    *,
    dtype: str = "auto",
    max_model_len: int = 0,
    max_num_seqs: int = 32,
    max_num_batched_tokens: int = 512,
    kv_cache_bytes: int = 0,
    threads: int = 0,
    backend: str = "",
) -> Loaded:
    """The executor over the tensors of `source`, which it keeps and does not copy where they are quantized."""
    wide = dtype == "float32"
    bytes_per_token = config.kv_elements_per_token * (4 if wide else 2)
    length = min(max_model_len or config.max_position_embeddings, config.max_position_embeddings)
    plan = plan_cache(
        bytes_per_token=bytes_per_token,
        block_size=BLOCK_SIZE,
        max_model_len=length,
        max_num_seqs=max_num_seqs,
        kv_cache_bytes=kv_cache_bytes,
        free_bytes=free_cpu_bytes(bytes_per_token, length),
    )
    engine = EngineConfig(
        max_model_len=plan.max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
        block_size=BLOCK_SIZE,
        num_blocks=plan.num_blocks,
        eos_token_ids=frozenset(config.eos_token_ids),
        vocab_size=config.vocab_size,
    )
    count = threads or len(os.sched_getaffinity(0))
    weights = read_weights(config, source, count)
    decoder = _decoder(config, weights, plan, engine.max_num_batched_tokens, wide=wide, threads=count, backend=backend)
    return Loaded(NativeRunner(decoder), engine, config, f"native {backend or backend_name()}, {count} threads")


def _decoder(
    config: ModelConfig, weights: NativeWeights, plan: CachePlan, tokens: int, *, wide: bool, threads: int, backend: str
) -> Decoder:
    shape = Shape(
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        eps=config.rms_norm_eps,
        num_blocks=plan.num_blocks,
        max_tokens=tokens,
        kv_dtype="float32" if wide else "bfloat16",
    )
    return Decoder(
        shape,
        embed=weights.embed,
        lm_head=weights.lm_head,
        norm=weights.norm,
        inv_freq=weights.inv_freq,
        layers=weights.layers,
        kv=_zeroed(config.num_layers * plan.num_blocks * shape.kv_elements_per_block * (4 if wide else 2)),
        threads=threads,
        backend=backend,
    )


def _zeroed(size: int) -> Array:
    """Pages that the kernel gives, cleared, when they are first touched."""
    return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
