"""From an artifact's folder to an executor of the native CPU decoder. Imports no torch: that is most of a start."""

import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_plane.execution.cache_plan import free_cpu_bytes
from data_plane.execution.loaded import BLOCK_SIZE, Loaded, LoadOptions, size_engine
from data_plane.execution.native_model import ArtifactSource, Source, fits, read_weights
from data_plane.execution.native_opening import Opened, populate
from data_plane.execution.native_runner import NativeRunner
from data_plane.execution.overlapping import OverlappingRunner
from data_plane.execution.warm_up import touch
from data_plane.weights.layout import DTYPE_BYTES, ModelConfig
from data_plane.weights.mapped import open_mapped
from kernels.cpu.decoder import Array, Decoder, Shape, Weights
from kernels.cpu.library import backend_name, library_digest

DTYPES = ("auto", "bfloat16", "float32")
"""Sums are float32 in any case: the dtype says how keys and values are kept, and `auto` is bfloat16."""
TORCH_VARIABLE = "EBB_CPU_PATH"


def serves(options: LoadOptions) -> bool:
    """Whether the native decoder is built, and made for this device and dtype. `EBB_CPU_PATH=torch`: no."""
    if options.device != "cpu" or options.dtype not in DTYPES or os.environ.get(TORCH_VARIABLE) == "torch":
        return False
    return bool(backend_name())


def load(
    artifact_dir: Path, options: LoadOptions, on_phase: Callable[[str], None], ahead: Opened | None = None
) -> Loaded | None:
    """As `data_plane.execution.load`; None, and nothing was told, for a model that the decoder is not made for.

    `ahead`: the artifact, where it was opened before. For options that `serves` says yes to.
    """
    if ahead is not None and ahead.is_still(artifact_dir):
        artifact, weights = ahead.artifact, ahead.weights
    else:
        artifact, weights = open_mapped(artifact_dir), None
    if not fits(artifact.config, artifact.forms):
        return None
    on_phase("loading")
    on_phase("mapped")
    loaded = build(artifact.config, ArtifactSource(artifact), options, weights=weights)
    on_phase("warming")
    # with the pages there and the code in memory a step would warm nothing, and last as long as a step
    if weights is None or not populate(artifact):
        touch(loaded.executor)
    return loaded


def build(
    config: ModelConfig, source: Source, options: LoadOptions, backend: str = "", weights: Weights | None = None
) -> Loaded:
    """The executor over the tensors of `source`, which it keeps and does not copy where they are quantized. `weights`:
    what `read_weights` makes of them, where that was done before.

    Raises ValueError for a model that `fits` says no to: the decoder would read past its rows and answer nonsense.
    """
    if not fits(config, {}):
        raise ValueError(
            f"The native decoder is not written for heads of {config.head_dim} and an intermediate size of "
            f"{config.intermediate_size}: both must be multiples of 16. Load the model with EBB_CPU_PATH=torch."
        )
    kv_dtype = "float32" if options.dtype == "float32" else "bfloat16"
    bytes_per_token = config.kv_elements_per_token * DTYPE_BYTES[kv_dtype]
    engine = size_engine(config, options, bytes_per_token, lambda length: free_cpu_bytes(bytes_per_token, length))
    threads = options.num_threads
    shape = Shape(
        hidden=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        eps=config.rms_norm_eps,
        num_blocks=engine.num_blocks,
        max_tokens=engine.max_num_batched_tokens,
        kv_dtype=kv_dtype,
    )
    weights = weights or read_weights(config, source, threads)
    pages = mmap.mmap(-1, engine.num_blocks * engine.block_size * bytes_per_token)
    kv = np.frombuffer(pages, dtype=np.uint8)
    decoder = Decoder(shape, weights, kv=kv, threads=threads, backend=backend)
    kind = f"native {backend or backend_name()}"
    made = OverlappingRunner if options.overlaps else NativeRunner
    blocks = kv.reshape(config.num_layers, engine.num_blocks, -1)
    runner = made(decoder, pages, blocks, _form(config, kv_dtype, weights.inv_freq, kind))
    return Loaded(runner, engine, config, f"{kind}, {threads} threads")


def _form(config: ModelConfig, kv_dtype: str, inv_freq: Array, kind: str) -> str:
    # not the threads: however many they are, the bits are the same
    # numpy's powers give the frequencies, and may give other last bits in another version of it
    turns = hashlib.sha256(inv_freq.tobytes()).hexdigest()[:16]
    kernels = library_digest()[:16]
    shape = f"{config.num_layers}x{config.num_kv_heads}x{config.head_dim}x{BLOCK_SIZE}"
    return f"{kind}, kernels {kernels}, {shape} {kv_dtype}, frequencies {turns}"
