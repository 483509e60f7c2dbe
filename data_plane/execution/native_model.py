"""An artifact's tensors as the native decoder takes them. Knows nothing of batches; imports no torch."""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_plane.weights.layout import ModelConfig
from data_plane.weights.mapped import MappedArtifact
from kernels.cpu.decoder import Array, LayerTiles, Tiles, Weights, pack_plain

MAX_HEAD_DIM = 512
MAX_GROUP = 16
_NUMPY = {"BF16": np.uint16, "F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8}
_KINDS = {"uint16": "bfloat16", "float32": "float32"}


class Source(Protocol):
    """Where tensors come from: an artifact, or memory in tests."""

    def array(self, name: str) -> Array:
        """The stored tensor; bfloat16 as its bits, uint16. KeyError where there is none."""
        ...

    def copied(self, name: str) -> None:
        """The tensor was copied elsewhere and is not needed in this place any more."""
        ...


@dataclass(frozen=True, slots=True)
class ArtifactSource:
    """The tensors of a mapped artifact, in place."""

    artifact: MappedArtifact

    def array(self, name: str) -> Array:
        span = self.artifact.spans[name]
        return np.frombuffer(self.artifact.view(name), dtype=_NUMPY[span.dtype]).reshape(span.shape)

    def copied(self, name: str) -> None:
        # else a plain model would peak at twice its size; the pages stay in the system's cache
        span = self.artifact.spans[name]
        start = -(-span.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = span.end // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self.artifact.data.madvise(mmap.MADV_DONTNEED, start, length)


@dataclass(frozen=True, slots=True)
class ArraySource:
    """Tensors by name, for tests."""

    arrays: Mapping[str, Array]

    def array(self, name: str) -> Array:
        return self.arrays[name]

    def copied(self, name: str) -> None:
        """They stay."""


def fits(config: ModelConfig, forms: Mapping[str, str]) -> bool:
    """Whether the decoder is written for this model: whole registers of head dimensions, no fp8."""
    group = config.num_heads // config.num_kv_heads
    heads_fit = config.head_dim % 16 == 0 and config.head_dim <= MAX_HEAD_DIM and group <= MAX_GROUP
    return heads_fit and config.intermediate_size % 16 == 0 and "fp8" not in forms.values()


def read_weights(config: ModelConfig, source: Source, threads: int) -> Weights:
    """Quantized matrices in place; plain ones are put into tiles, which copies them."""
    tiles = _Reader(config, source, threads)
    embed = tiles.matrix("embed", config.vocab_size, config.hidden_size)
    head = embed if config.tie_word_embeddings else tiles.matrix("lm_head", config.vocab_size, config.hidden_size)
    layers = [tiles.layer(f"layers.{at}") for at in range(config.num_layers)]
    return Weights(embed, head, tiles.vector("norm.weight"), inverse_frequencies(config), layers)


def first_matrix(config: ModelConfig, source: Source, threads: int) -> Tiles:
    """The first layer's widest matrix, to measure products with."""
    rows, columns = 2 * config.intermediate_size, config.hidden_size
    return _Reader(config, source, threads).matrix("layers.0.mlp.gate_up", rows, columns)


class _Reader:
    def __init__(self, config: ModelConfig, source: Source, threads: int) -> None:
        self.config, self.source, self.threads = config, source, threads

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        values = self.source.array(name)
        wide = (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values
        return np.ascontiguousarray(wide, dtype=np.float32)

    def matrix(self, name: str, rows: int, columns: int, *, bias: bool = False) -> Tiles:
        weight = self.source.array(f"{name}.weight")
        added = self.vector(f"{name}.bias") if bias else None
        if kind := _KINDS.get(weight.dtype.name):
            plain = pack_plain(weight, kind, self.threads)
            self.source.copied(f"{name}.weight")
            return Tiles(plain.kind, rows, columns, plain.weight, bias=added)
        scale = self.source.array(f"{name}.scale")
        if weight.dtype == np.int8:
            return Tiles("int8", rows, columns, weight, scale, bias=added)
        return Tiles("int4", rows, columns, weight, scale, self.source.array(f"{name}.min"), added)

    def layer(self, prefix: str) -> LayerTiles:
        config = self.config
        hidden, q_rows = config.hidden_size, config.num_heads * config.head_dim
        qkv_rows = q_rows + 2 * config.num_kv_heads * config.head_dim
        return LayerTiles(
            qkv=self.matrix(f"{prefix}.attention.qkv", qkv_rows, hidden, bias=config.attention_bias),
            o=self.matrix(f"{prefix}.attention.o", hidden, q_rows),
            gate_up=self.matrix(f"{prefix}.mlp.gate_up", 2 * config.intermediate_size, hidden),
            down=self.matrix(f"{prefix}.mlp.down", hidden, config.intermediate_size),
            attn_norm=self.vector(f"{prefix}.attn_norm.weight"),
            mlp_norm=self.vector(f"{prefix}.mlp_norm.weight"),
            q_norm=self.vector(f"{prefix}.attention.q_norm.weight") if config.qk_norm else None,
            k_norm=self.vector(f"{prefix}.attention.k_norm.weight") if config.qk_norm else None,
        )


def inverse_frequencies(config: ModelConfig) -> npt.NDArray[np.float32]:
    """Of the rotary embedding, float32 [head size / 2]; the formulas of `layers.rotary`, its twin."""
    scaling: dict[str, Any] = config.rope_scaling or {}
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    factor = float(scaling.get("factor", 1.0))
    frequencies = np.float32(1.0) / np.power(np.float32(config.rope_theta), exponents)
    if scaling.get("rope_type") != "llama3":
        return np.ascontiguousarray(frequencies / np.float32(factor), dtype=np.float32)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / np.float32(2 * pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return np.ascontiguousarray(frequencies * (blend + (1 - blend) / factor), dtype=np.float32)
