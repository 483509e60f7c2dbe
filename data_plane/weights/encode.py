"""What an artifact's tensors hold, plain or quantized, made one at a time from a source. Knows nothing of files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data_plane.weights.errors import ModelError
from data_plane.weights.layout import ModelConfig, tensor_layout
from data_plane.weights.quantize import (
    INT4_GROUP,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
    tile_groups,
    tile_int4,
    tile_int8,
)
from data_plane.weights.safetensors_header import TensorSpec
from data_plane.weights.source_model import SourceModel
from data_plane.weights.stored import is_matrix, part_specs

VOCABULARY = ("embed.weight", "lm_head.weight")
VOCABULARY_FORMS = {"int4": "int8"}
"""Where the embedding and the output matrix are stored otherwise than the rest. SmolLM2-135M, perplexity against
bfloat16 and mean KL: int4 throughout 1.0575 and 0.044, with these two in int8 1.0078 and 0.0074, for 11 MB more."""


@dataclass(frozen=True, slots=True)
class Contents:
    """`specs`: for each tensor of the model, in order, the tensors that store it; `read` makes those of one tensor."""

    config: ModelConfig
    specs: Mapping[str, Mapping[str, TensorSpec]]
    read: Callable[[str], Mapping[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for parts in self.specs.values() for spec in parts.values())


def plain_contents(config: ModelConfig, read_tensor: Callable[[str], Tensor]) -> Contents:
    """Every tensor as `read_tensor` gives it, in the config's dtype."""
    layout = tensor_layout(config)
    specs = {name: part_specs(name, shape, "plain", config.dtype, 0) for name, shape in layout.items()}
    return Contents(config, specs, lambda name: {name: read_tensor(name)})


def quantized_contents(model: SourceModel, quantization: str, vocabulary_form: str = "") -> Contents:
    """Every matrix of `model` in the form `quantization` (int8, int4, fp8); norms and biases stay plain.

    `vocabulary_form`: another form for the embedding and the output matrix; by default VOCABULARY_FORMS has it.
    ModelError for sizes that do not fit.
    """
    vocabulary_form = vocabulary_form or VOCABULARY_FORMS.get(quantization, "")
    config = replace(model.config, quantization=quantization)
    forms: dict[str, str] = {}
    for name, shape in tensor_layout(config).items():
        form = vocabulary_form or quantization if name in VOCABULARY else quantization
        forms[name] = form if is_matrix(name, shape) else "plain"
    specs = {
        name: part_specs(name, shape, forms[name], config.dtype, INT4_GROUP)
        for name, shape in tensor_layout(config).items()
    }
    return Contents(config, specs, lambda name: _encode(model, name, forms[name]))


def _encode(model: SourceModel, name: str, form: str) -> dict[str, Tensor]:
    stem = name.removesuffix("weight")
    if form == "plain":
        return {name: model.read_tensor(name)}
    if form == "int4":
        found = model.read_int4(name) or quantize_int4(model.read_exact(name))
        parts = {stem + "scale": tile_groups(found.scale), stem + "min": tile_groups(found.minimum)}
        return {name: tile_int4(found.codes)} | _finite(name, parts)
    values, scale = (quantize_int8 if form == "int8" else quantize_fp8)(model.read_exact(name))
    if form == "fp8":
        return {name: values} | _finite(name, {stem + "scale": scale})
    tiles = tile_int8(values)
    padded = torch.zeros(tiles.shape[0] * tiles.shape[2])
    padded[: len(scale)] = scale
    return {name: tiles} | _finite(name, {stem + "scale": padded})


def _finite(name: str, factors: dict[str, Tensor]) -> dict[str, Tensor]:
    for tensor in factors.values():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{name} holds values that are not numbers, or too large for {tensor.dtype} factors; "
                "get a sound model, or import it with --quantization none"
            )
    return factors
