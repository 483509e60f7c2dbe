"""A GGUF of the Llama family read as a source model. Knows GGUF's names; knows nothing of the artifact's bytes."""

from collections.abc import Iterable
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_plane.weights.errors import ArtifactError, ModelError
from data_plane.weights.gguf import GgufFile
from data_plane.weights.gguf_tokenizer import read_tokenizer
from data_plane.weights.layout import ModelConfig, parse_config
from data_plane.weights.quantize import Int4Matrix, quantize_int4
from data_plane.weights.source_model import DTYPES, SourceModel, fuse

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Mistral's GGUFs say llama as well."""

_GLOBAL = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
_LAYER = {
    "attn_norm.weight": ("attn_norm.weight",),
    "attention.qkv.weight": ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
    "attention.qkv.bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "attention.q_norm.weight": ("attn_q_norm.weight",),
    "attention.k_norm.weight": ("attn_k_norm.weight",),
    "attention.o.weight": ("attn_output.weight",),
    "mlp_norm.weight": ("ffn_norm.weight",),
    "mlp.gate_up.weight": ("ffn_gate.weight", "ffn_up.weight"),
    "mlp.down.weight": ("ffn_down.weight",),
}
_ROPE_FACTORS = "rope_freqs.weight"


def open_gguf_model(path: Path, dtype: str) -> SourceModel:
    """Reads the metadata; tensors are read when asked for. Raises GgufError or ModelError."""
    gguf = GgufFile(path)
    tokenizer = read_tokenizer(gguf.metadata)
    config = _read_config(gguf, tokenizer.eos_token_ids, tokenizer.bos_token_id, dtype)
    if tokenizer.size > config.vocab_size:
        raise ModelError(f"the tokenizer has {tokenizer.size} tokens, the embedding only {config.vocab_size} rows")
    reader = _TensorReader(gguf, config, permuted=gguf.metadata["general.architecture"] == "llama")
    reader.refuse_unknown()
    licence = gguf.metadata.get("general.license")
    return SourceModel(
        config,
        tokenizer.files,
        lambda name: reader.read(name, DTYPES[dtype]),
        tokenizer.chat_template,
        licence[:200] if isinstance(licence, str) else None,
        lambda name: reader.read(name, torch.float32),
        reader.read_int4,
    )


class _TensorReader:
    """Translates the artifact's names to GGUF's, fuses, and puts rows back in order."""

    def __init__(self, gguf: GgufFile, config: ModelConfig, *, permuted: bool) -> None:
        self.gguf, self.config, self.permuted = gguf, config, permuted
        self.used: set[str] = {_ROPE_FACTORS}

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return fuse(name, [self._ordered(source, self.gguf.read(source, dtype)) for source in self.sources(name)])

    def read_int4(self, name: str) -> Int4Matrix | None:
        """The matrix of the artifact by the file's own 4-bit blocks: fusing and reordering move whole rows of them.

        None where no part has such blocks; a part of another kind beside parts that have is quantized here.
        """
        found = {source: self.gguf.read_int4(source) for source in self.sources(name)}
        if all(part is None for part in found.values()):
            return None
        parts = [part or quantize_int4(self.gguf.read(source, torch.float32)) for source, part in found.items()]

        def fused(pieces: Iterable[torch.Tensor]) -> torch.Tensor:
            return fuse(name, [self._ordered(source, piece) for source, piece in zip(found, pieces, strict=True)])

        return Int4Matrix(
            fused(part.codes for part in parts),
            fused(part.scale for part in parts),
            fused(part.minimum for part in parts),
        )

    @staticmethod
    def sources(name: str) -> list[str]:
        if name in _GLOBAL:
            return [_GLOBAL[name]]
        _, index, rest = name.split(".", 2)
        return [f"blk.{index}.{part}" for part in _LAYER[rest]]

    def _ordered(self, source: str, tensor: torch.Tensor) -> torch.Tensor:
        """Anything that has a row for each row of `source`, in the artifact's order of rows."""
        if self.permuted and ".attn_q." in source:
            return restore_rotary_rows(tensor, self.config.num_heads)
        if self.permuted and ".attn_k." in source:
            return restore_rotary_rows(tensor, self.config.num_kv_heads)
        return tensor

    def refuse_unknown(self) -> None:
        """A tensor nobody reads would be a model that silently computes something else."""
        known = {_ROPE_FACTORS, *_GLOBAL.values()}
        for i in range(self.config.num_layers):
            known.update(f"blk.{i}.{part}" for parts in _LAYER.values() for part in parts)
        if unknown := sorted(set(self.gguf.tensors) - known):
            raise ModelError(
                f"the file holds {len(unknown)} tensors that this kind of model does not have, such as "
                f"{', '.join(unknown[:3])}; use a plain Llama, Mistral, Qwen2 or Qwen3 model"
            )


def restore_rotary_rows(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """From GGUF's Llama order, where rotated pairs are neighbours, to halves: row j pairs with row j + head_dim / 2.

    `tensor` is a weight [num_heads * head_dim, hidden] or a bias [num_heads * head_dim].
    """
    rows, *rest = tensor.shape
    if rows % (2 * num_heads):
        raise ModelError(f"{rows} attention rows are not {num_heads} heads of an even size; the file is inconsistent")
    return tensor.view(num_heads, rows // num_heads // 2, 2, *rest).transpose(1, 2).reshape(rows, *rest)


def _read_config(gguf: GgufFile, eos: list[int], bos: int | None, dtype: str) -> ModelConfig:
    metadata = gguf.metadata
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"the GGUF's architecture is {str(architecture)[:50]!r}; these are served: {', '.join(ARCHITECTURES)}"
        )
    keys = _Keys(metadata, f"{architecture}.")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("the file has no matrix token_embd.weight; get a complete file")
    if keys.number("expert_count", 0):
        raise ModelError("the model is a mixture of experts, which is not served; use a dense model")
    heads = int(keys.number("attention.head_count"))
    hidden = int(keys.number("embedding_length"))
    head_dim = int(keys.number("attention.key_length", hidden // max(heads, 1)))
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.number(key, head_dim) != head_dim:
            raise ModelError(f"{key} is {keys.number(key):g}, but only the head's own size, {head_dim}, is served")
    context = int(keys.number("context_length"))
    window = int(keys.number("attention.sliding_window", context)) or context
    raw: dict[str, Any] = {
        "architecture": "llama",
        "hidden_size": hidden,
        "num_layers": int(keys.number("block_count")),
        "num_heads": heads,
        "num_kv_heads": int(keys.number("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "intermediate_size": int(keys.number("feed_forward_length")),
        "vocab_size": embedding.shape[0],
        # within its window a sliding attention is a full one
        "max_position_embeddings": min(context, window),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "qk_norm": "blk.0.attn_q_norm.weight" in gguf.tensors,
        "eos_token_ids": eos,
        "bos_token_id": bos,
        "dtype": dtype,
    }
    raw["rope_scaling"] = _rope_scaling(gguf, keys, raw["rope_theta"], head_dim)
    try:
        return parse_config(raw)
    except ArtifactError as error:
        raise ModelError(f"the GGUF's metadata do not describe a model: {error}") from None


class _Keys:
    """Numbers of the metadata under the architecture's prefix."""

    def __init__(self, metadata: dict[str, Any], prefix: str) -> None:
        self.metadata, self.prefix = metadata, prefix

    def number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(self.prefix + key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value.flat[0]).all():
            value = value.flat[0].item()  # one number per layer, all the same
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
            raise ModelError(
                f"the metadata give {self.prefix}{key} as {str(value)[:50]}, where one number is needed for all layers"
            )
        # GGUF stores float32: 1e-5 would otherwise be recorded as 9.999999747378752e-06
        return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope_scaling(gguf: GgufFile, keys: _Keys, theta: float, head_dim: int) -> dict[str, Any] | None:
    kind = gguf.metadata.get(keys.prefix + "rope.scaling.type", "none")
    if kind == "linear" or (kind == "none" and keys.prefix + "rope.scale_linear" in gguf.metadata):
        factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
        return None if factor == 1 else {"rope_type": "linear", "factor": factor}
    if kind != "none":
        raise ModelError(f"the rope scaling {str(kind)[:50]!r} is not served; linear and llama3 are")
    if _ROPE_FACTORS not in gguf.tensors:
        return None
    factors = gguf.read(_ROPE_FACTORS, torch.float32)
    if tuple(factors.shape) != (head_dim // 2,):
        raise ModelError(f"{_ROPE_FACTORS} has the shape {list(factors.shape)}, but a head has {head_dim // 2} pairs")
    return _llama3_scaling(factors, theta, int(keys.number("rope.scaling.original_context_length", 8192)))


def _llama3_scaling(factors: torch.Tensor, theta: float, original_context: int) -> dict[str, Any] | None:
    """The parameters whose formula gives `factors`: GGUF keeps only the formula's result, one divisor per frequency.

    Formula: Hugging Face's `_compute_llama3_parameters`; 1 and 4 are the frequency factors of every Llama 3.
    """
    low, high = 1.0, 4.0
    factor = round(float(factors.max()), 4)
    if bool((factors == 1).all()):
        return None
    pairs = len(factors)
    wavelengths = 2 * pi * theta ** (torch.arange(pairs, dtype=torch.float64) / pairs)
    for context in dict.fromkeys((original_context, 8192, 4096, 2048, 16384, 32768)):
        smooth = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
        if torch.allclose(1 / ((1 - smooth) / factor + smooth), factors.double(), rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise ModelError(f"{_ROPE_FACTORS} follows no llama3 scaling (largest divisor {factor}); it cannot be represented")
