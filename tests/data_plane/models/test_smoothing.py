"""Moving outliers from activations into weights changes no result, and makes int8 products of it better ones."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_plane.evaluation import calibrate
from data_plane.models import placing
from data_plane.models.llama import Llama
from data_plane.weights.encode import quantized_contents
from data_plane.weights.layout import tensor_layout
from data_plane.weights.smoothing import smoothed
from data_plane.weights.source_model import SourceModel, TokenizerFiles
from tests.data_plane.models.test_quantized import CPU, error, logits
from tests.data_plane.models.tiny import Tiny, make_tiny


def source(tiny: Tiny) -> SourceModel:
    read = tiny.tensors.__getitem__
    return SourceModel(tiny.config, TokenizerFiles(b"", {}), read, None, None, read)


def with_outliers(family: str) -> Tiny:
    """A tiny model some of whose channels are far larger than the rest, as trained models have them."""
    tiny = make_tiny(family)
    for name, tensor in tiny.tensors.items():
        if name.endswith("norm.weight") and tensor.shape[0] == tiny.config.hidden_size:
            tensor[[3, 17]] *= 40
        elif name.endswith(("qkv.weight", "gate_up.weight")) or name == "lm_head.weight":
            tensor[:, [3, 17]] /= 40
    return tiny


def ranges(tiny: Tiny) -> dict[str, Tensor]:
    prompts = [[5, 17, 3, 99, 42, 8], [61, 2, 30]]
    model = Llama(tiny.config, tiny.tensors, 32)
    return calibrate._observe(model, prompts, CPU)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "qwen3"])
def test_no_result_changes(family: str) -> None:
    tiny = with_outliers(family)
    seen = ranges(tiny)
    assert ("lm_head.weight" in seen) != tiny.config.tie_word_embeddings
    moved = smoothed(source(tiny), lambda: seen)
    tensors = {name: moved.read_exact(name) for name, shape in tensor_layout(tiny.config).items() if len(shape) == 2}
    tensors |= {name: moved.read_tensor(name) for name in tiny.tensors if name not in tensors}
    assert not torch.equal(tensors["layers.1.mlp.down.weight"], tiny.tensors["layers.1.mlp.down.weight"])
    assert error(logits(tiny.config, tensors), logits(tiny.config, tiny.tensors)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_int8_gets_better(family: str) -> None:
    tiny = with_outliers(family)
    exact = logits(tiny.config, tiny.tensors)

    def lost(model: SourceModel) -> float:
        contents = quantized_contents(model, "int8")
        tensors: dict[str, Tensor] = {}
        for name in contents.specs:
            tensors |= contents.read(name)
        return error(logits(contents.config, placing.place(contents.config, tensors, CPU, torch.float32)), exact)

    seen = ranges(tiny)
    assert lost(smoothed(source(tiny), lambda: seen)) < 0.7 * lost(source(tiny))


def test_norms_in_bfloat16_are_made_up_for_by_the_weights() -> None:
    tiny = with_outliers("llama")
    halved = {n: t.bfloat16() if t.dim() == 1 else t for n, t in tiny.tensors.items()}
    exact = {name: tensor.float() for name, tensor in halved.items()}
    model = replace(source(tiny), read_tensor=halved.__getitem__, read_exact=exact.__getitem__)
    seen = ranges(tiny)
    moved = smoothed(model, lambda: seen)
    norm, matrix = "layers.0.attn_norm.weight", "layers.0.attention.qkv.weight"
    assert moved.read_tensor(norm).dtype == torch.bfloat16
    before = halved[norm].float() * halved[matrix].float()
    torch.testing.assert_close(moved.read_tensor(norm).float() * moved.read_exact(matrix), before)


def test_matrices_that_nobody_saw_stay() -> None:
    tiny = make_tiny("llama")
    moved = smoothed(source(tiny), dict[str, Tensor])
    for name, tensor in tiny.tensors.items():
        assert torch.equal(moved.read_exact(name), tensor), name
