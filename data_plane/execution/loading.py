"""From an artifact's folder to an executor of torch operators. Knows nothing of HTTP or of the platform."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from data_plane.engine.config import EngineConfig
from data_plane.execution.cache_plan import plan_cache
from data_plane.execution.kv_cache import allocate_cache, free_memory_bytes
from data_plane.execution.loaded import BLOCK_SIZE, Loaded
from data_plane.execution.model_runner import ModelRunner
from data_plane.execution.warm_up import warm_up
from data_plane.models import placing, registry
from data_plane.weights.artifact import open_artifact
from data_plane.weights.layout import ModelConfig, parse_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    """Loads, sizes the KV cache and warms up; calls `on_phase("loading")`, then `on_phase("warming")`.

    `max_model_len` 0: the model's own; `kv_cache_bytes` 0: by the memory that is free; `threads` 0: all cores.
    ValueError (ArtifactError) says what is wrong with the artifact or with the numbers.
    """
    on_phase("loading")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    artifact = open_artifact(artifact_dir)
    loaded = build(
        parse_config(artifact.config),
        artifact.tensors,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_bytes=kv_cache_bytes,
    )
    on_phase("warming")
    warm_up(loaded.executor, loaded.config)
    return loaded


def build(
    model_config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    device: str = "cpu",
    dtype: str = "auto",
    max_model_len: int = 0,
    max_num_seqs: int = 32,
    max_num_batched_tokens: int = 512,
    kv_cache_bytes: int = 0,
    block_size: int = BLOCK_SIZE,
) -> Loaded:
    """The executor over tensors in memory, which are used as they are where device and dtype already fit."""
    place = _device(device)
    kind = resolve_dtype(dtype, place)
    if dtype == "auto" and place.type == "cpu" and model_config.quantization != "none":
        # activations are rounded to whole numbers before every product: float32 is what is rounded least before that
        kind = torch.float32
    placed = placing.place(model_config, tensors, place, kind)
    bytes_per_token = model_config.kv_elements_per_token * kind.itemsize
    length = min(max_model_len or model_config.max_position_embeddings, model_config.max_position_embeddings)
    plan = plan_cache(
        bytes_per_token=bytes_per_token,
        block_size=block_size,
        max_model_len=length,
        max_num_seqs=max_num_seqs,
        kv_cache_bytes=kv_cache_bytes,
        free_bytes=free_memory_bytes(place, bytes_per_token, length),
    )
    model = registry.build(model_config, placed, plan.max_model_len)
    caches = allocate_cache(
        plan,
        num_layers=model_config.num_layers,
        kv_heads=model_config.num_kv_heads,
        head_dim=model_config.head_dim,
        dtype=kind,
        device=place,
    )
    config = EngineConfig(
        max_model_len=plan.max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
        block_size=block_size,
        num_blocks=plan.num_blocks,
        eos_token_ids=frozenset(model_config.eos_token_ids),
        vocab_size=model_config.vocab_size,
    )
    return Loaded(ModelRunner(model, caches, block_size=block_size, device=place), config, model_config)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively (CUDA, AVX-512 BF16, AMX), else float32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" or _cpu_multiplies_bfloat16() else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype '{name}' is unknown; choose auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _cpu_multiplies_bfloat16() -> bool:
    # the private names are torch's only way to ask; both exist since 2.6
    avx512 = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return avx512 or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"Device '{name}' is not supported; choose cpu or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Device '{name}' is asked for and torch finds no CUDA device; choose cpu.")
    return device
