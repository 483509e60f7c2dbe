"""From an artifact's folder to an executor of torch operators. Knows nothing of HTTP or of the platform."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from data_plane.execution.kv_cache import allocate_cache, free_memory_bytes
from data_plane.execution.loaded import Loaded, LoadOptions, size_engine
from data_plane.execution.model_runner import ModelRunner
from data_plane.execution.warm_up import warm_up
from data_plane.models import placing, registry
from data_plane.weights.artifact import open_artifact
from data_plane.weights.layout import ModelConfig, parse_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(artifact_dir: Path, options: LoadOptions, on_phase: Callable[[str], None]) -> Loaded:
    """As `data_plane.execution.load`, in torch operators."""
    on_phase("loading")
    torch.set_num_threads(options.num_threads)
    artifact = open_artifact(artifact_dir)
    on_phase("mapped")
    loaded = build(parse_config(artifact.config), artifact.tensors, options)
    on_phase("warming")
    warm_up(loaded.executor, loaded.config)
    return loaded


def build(model_config: ModelConfig, tensors: Mapping[str, Tensor], options: LoadOptions) -> Loaded:
    """The executor over tensors in memory, which are used as they are where device and dtype already fit."""
    place = _device(options.device)
    kind = resolve_dtype(options.dtype, place)
    if options.dtype == "auto" and place.type == "cpu" and model_config.quantization != "none":
        # activations are rounded to whole numbers before every product: float32 is what is rounded least before that
        kind = torch.float32
    placed = placing.place(model_config, tensors, place, kind)
    bytes_per_token = model_config.kv_elements_per_token * kind.itemsize
    config = size_engine(
        model_config, options, bytes_per_token, lambda length: free_memory_bytes(place, bytes_per_token, length)
    )
    model = registry.build(model_config, placed, config.max_model_len)
    caches = allocate_cache(
        config.num_blocks * config.block_size,
        num_layers=model_config.num_layers,
        kv_heads=model_config.num_kv_heads,
        head_dim=model_config.head_dim,
        dtype=kind,
        device=place,
    )
    return Loaded(ModelRunner(model, caches, block_size=config.block_size, device=place), config, model_config)


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
