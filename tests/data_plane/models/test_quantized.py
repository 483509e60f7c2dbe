"""A quantized artifact computes what its own values, dequantized, compute, but for the rounding of activations."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_plane.models import placing, registry
from data_plane.weights.encode import quantized_contents
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig, tensor_layout
from data_plane.weights.source_model import SourceModel, TokenizerFiles
from kernels import ops, reference
from kernels.ops import Segment
from tests.data_plane.models.tiny import FAMILIES, Tiny, make_tiny

CPU = torch.device("cpu")
MOST_ERROR = 0.15
"""Relative. 0.03 to 0.1 are seen: weights this wild enlarge every rounding. A tensor in a wrong place gives about 1."""
WIDE = {"hidden_size": 96, "intermediate_size": 160, "head_dim": 16}
"""int4 needs columns in groups of 32."""


def quantized(tiny: Tiny, quantization: str, vocabulary: str = "") -> tuple[ModelConfig, dict[str, Tensor]]:
    source = SourceModel(
        tiny.config, TokenizerFiles(b"", {}), tiny.tensors.__getitem__, None, None, tiny.tensors.__getitem__
    )
    contents = quantized_contents(source, quantization, vocabulary)
    tensors: dict[str, Tensor] = {}
    for name in contents.specs:
        tensors |= contents.read(name)
    return contents.config, tensors


def logits(config: ModelConfig, tensors: dict[str, Tensor]) -> Tensor:
    model = registry.build(config, tensors, 32)
    caches = [torch.zeros(32, 2, config.num_kv_heads, config.head_dim) for _ in range(config.num_layers)]
    ids = torch.tensor([5, 17, 3, 99, 42, 8, 8, 61])
    at = torch.arange(len(ids))
    with torch.inference_mode():
        hidden = model.forward(ids, at, at, [Segment(0, len(ids), len(ids), slice(0, len(ids)))], caches)
        return model.logits(hidden)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (config_class, model_class, changes) in FAMILIES.items():
        monkeypatch.setitem(FAMILIES, name, (config_class, model_class, {**changes, **WIDE}))


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "qwen3"])
@pytest.mark.parametrize(("quantization", "vocabulary"), [("int8", ""), ("int4", ""), ("int4", "int8")])
def test_close_to_its_own_values(family: str, quantization: str, vocabulary: str) -> None:
    config, tensors = quantized(make_tiny(family), quantization, vocabulary)
    layout = tensor_layout(config)
    values = {name: placing.plain_values(tensors, name, shape).float() for name, shape in layout.items()}
    exact = logits(replace(config, quantization="none"), values)
    got = logits(config, placing.place(config, tensors, CPU, torch.float32))
    assert 0 < error(got, exact) < MOST_ERROR


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("quantization", "vocabulary"), [("int8", ""), ("int4", "int8")])
def test_the_products_are_those_of_the_twins(
    quantization: str, vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tensors = quantized(make_tiny("qwen2"), quantization, vocabulary)
    placed = placing.place(config, tensors, CPU, torch.float32)
    got = logits(config, placed)
    for name in ("int8_linear", "int4_linear"):
        monkeypatch.setattr(ops, name, getattr(reference, name))
    # a last bit may tip an activation to the next whole number, now and then
    assert error(got, logits(config, placed)) < 0.01


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_int8_of_odd_sizes(family: str) -> None:
    tiny = make_tiny(family)
    config, tensors = quantized(tiny, "int8")
    got = logits(config, placing.place(config, tensors, CPU, torch.float32))
    assert error(got, logits(tiny.config, tiny.tensors)) < MOST_ERROR


def test_fp8_is_for_gpus() -> None:
    config, tensors = quantized(make_tiny("llama"), "fp8")
    with pytest.raises(ValueError, match="only GPUs multiply, and the device is cpu"):
        placing.place(config, tensors, CPU, torch.float32)
    values = placing.plain_values(tensors, "embed.weight", (101, 48))
    torch.testing.assert_close(values, make_tiny("llama").tensors["embed.weight"], rtol=2**-4, atol=1e-3)


def test_missing_factors_and_wrong_tiles_are_named() -> None:
    config, tensors = quantized(make_tiny("llama"), "int8")
    with pytest.raises(ArtifactError, match=r"embed.weight' has shape \(3, 4, 16, 4\); expected \(7, 16, 16, 4\)"):
        placing.place(config, {**tensors, "embed.weight": tensors["embed.weight"][:3, :4]}, CPU, torch.float32)
    del tensors["embed.scale"]
    with pytest.raises(ArtifactError, match=r"'embed.scale' is missing"):
        placing.place(config, tensors, CPU, torch.float32)
