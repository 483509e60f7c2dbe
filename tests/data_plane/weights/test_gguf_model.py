"""GGUFs of each architecture: the values come back in the artifact's layout, and what cannot be served is refused."""

from math import pi
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_gguf import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, permute, write_gguf

from data_plane.weights.artifact import Origin, open_artifact, write_artifact
from data_plane.weights.errors import ModelError, WeightsError
from data_plane.weights.gguf_model import open_gguf_model, restore_rotary_rows
from data_plane.weights.source_model import fuse


@pytest.mark.parametrize(
    ("architecture", "bias", "tied"),
    [("llama", False, False), ("llama", True, True), ("qwen2", True, True), ("qwen3", False, False)],
)
def test_values_and_layout(tmp_path: Path, architecture: str, bias: bool, tied: bool) -> None:
    head_dim = {f"{architecture}.attention.{kind}_length": HEAD_DIM for kind in ("key", "value")}
    theirs = write_gguf(tmp_path / "m.gguf", architecture, tied=tied, bias=bias, extra=head_dim)
    model = open_gguf_model(tmp_path / "m.gguf", "float32")
    path = write_artifact(tmp_path, model.config, model.tokenizer, model.read_tensor, Origin("x", "0", 1, None))
    ours = open_artifact(path).tensors
    assert (model.config.attention_bias, model.config.tie_word_embeddings) == (bias, tied)
    assert model.config.qk_norm == (architecture == "qwen3")
    assert torch.equal(ours["embed.weight"], theirs["model.embed_tokens.weight"])
    assert ("lm_head.weight" in ours) != tied
    for i in range(LAYERS):
        mine, name = f"layers.{i}.", f"model.layers.{i}."
        for kind in ["weight", "bias"] if bias else ["weight"]:
            expected = torch.cat([theirs[f"{name}self_attn.{part}_proj.{kind}"] for part in "qkv"])
            assert torch.equal(ours[f"{mine}attention.qkv.{kind}"], expected)
        gate_up = torch.cat([theirs[f"{name}mlp.{part}_proj.weight"] for part in ("gate", "up")])
        assert torch.equal(ours[mine + "mlp.gate_up.weight"], gate_up)
        assert torch.equal(ours[mine + "attention.o.weight"], theirs[name + "self_attn.o_proj.weight"])
        if architecture == "qwen3":
            assert torch.equal(ours[mine + "attention.k_norm.weight"], theirs[name + "self_attn.k_norm.weight"])


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("shape", [(24, 5), (24,)])
def test_rotary_rows_are_restored(heads: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    assert torch.equal(restore_rotary_rows(permute(weight, heads), heads), weight)


def _llama3_factors(factor: float, context: int) -> np.ndarray:
    frequencies = 10000.0 ** -(torch.arange(HEAD_DIM // 2).double() / (HEAD_DIM // 2))
    factors: list[float] = []
    for frequency in frequencies.tolist():
        wavelength = 2 * pi / frequency
        if wavelength < context / 4:
            factors.append(1.0)
        elif wavelength > context:
            factors.append(factor)
        else:
            smooth = (context / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize(("factor", "context"), [(8.0, 8192), (32.0, 8192), (8.0, 2048)])
def test_llama3_scaling_is_recognized(tmp_path: Path, factor: float, context: int) -> None:
    factors = _llama3_factors(factor, context)
    assert factors.max() == factor
    write_gguf(tmp_path / "m.gguf", extra_tensors={"rope_freqs.weight": factors})
    scaling = open_gguf_model(tmp_path / "m.gguf", "bfloat16").config.rope_scaling
    assert scaling is not None
    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", factor)
    assert scaling["original_max_position_embeddings"] == context


def test_linear_scaling_and_window(tmp_path: Path) -> None:
    extra = {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0,
        "llama.attention.sliding_window": 128,
    }
    write_gguf(tmp_path / "m.gguf", extra=extra)
    config = open_gguf_model(tmp_path / "m.gguf", "bfloat16").config
    assert config.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    assert config.max_position_embeddings == 128


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"llama.expert_count": 8}, "mixture"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.rope.dimension_count": 8}, "dimension_count"),
        ({"llama.attention.key_length": 32, "llama.attention.value_length": 32}, "shape|rows"),
        ({"tokenizer.ggml.padding_token_id": 999999}, "999999"),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, extra: dict[str, int | str], sentence: str) -> None:
    write_gguf(tmp_path / "m.gguf", extra=extra)
    with pytest.raises(WeightsError, match=sentence):
        model = open_gguf_model(tmp_path / "m.gguf", "bfloat16")
        write_artifact(tmp_path, model.config, model.tokenizer, model.read_tensor, Origin("x", "0", 1, None))


def test_tensors_nobody_reads_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", extra_tensors={"blk.0.attn_sinks.weight": np.ones(4, dtype=np.float32)})
    with pytest.raises(ModelError, match=r"blk\.0\.attn_sinks"):
        open_gguf_model(tmp_path / "m.gguf", "bfloat16")


def test_other_factors_and_other_architectures_are_refused(tmp_path: Path) -> None:
    odd = np.linspace(1, 3, HEAD_DIM // 2, dtype=np.float32)
    write_gguf(tmp_path / "m.gguf", extra_tensors={"rope_freqs.weight": odd})
    with pytest.raises(ModelError, match="llama3"):
        open_gguf_model(tmp_path / "m.gguf", "bfloat16")
    write_gguf(tmp_path / "g.gguf", "gemma")
    with pytest.raises(ModelError, match="gemma"):
        open_gguf_model(tmp_path / "g.gguf", "bfloat16")


def test_sizes_of_the_tiny_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    config = open_gguf_model(tmp_path / "m.gguf", "bfloat16").config
    assert (config.hidden_size, config.num_heads, config.num_kv_heads) == (HIDDEN, HEADS, KV_HEADS)
    assert config.rms_norm_eps == 1e-6
    assert config.eos_token_ids == [0]
    assert config.kv_bytes_per_token == 2 * LAYERS * KV_HEADS * HEAD_DIM * 2


def test_parts_that_do_not_fit_are_named() -> None:
    """Found by fuzzing: a width changed in one of q, k and v."""
    assert fuse("x", [torch.ones(2, 3), torch.zeros(1, 3)]).shape == (3, 3)
    with pytest.raises(ModelError, match=r"parts of x .*\[1, 4\]"):
        fuse("x", [torch.ones(2, 3), torch.zeros(1, 4)])
