"""The small real model, through the whole import: its values, its tokenizer, and that it still speaks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize as reference_dequantize
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from data_plane.weights.artifact import open_artifact
from data_plane.weights.mapped import read_tokenizer_files


@pytest.fixture(scope="module")
def tokenizer(smollm2_artifact: Path) -> Tokenizer:
    return Tokenizer.from_str(read_tokenizer_files(smollm2_artifact)[0].decode())


def test_config_and_tokenizer_config(smollm2_artifact: Path) -> None:
    artifact = open_artifact(smollm2_artifact)
    assert artifact.config == {
        "architecture": "llama",
        "hidden_size": 576,
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "qk_norm": False,
        "eos_token_ids": [2, 0],
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "quantization": "none",
    }
    assert artifact.manifest["parameters"] == 134_515_008
    assert artifact.manifest["licence"] == "apache-2.0"
    config = read_tokenizer_files(smollm2_artifact)[1]
    assert config["eos_token"] == "<|im_end|>"
    assert config["add_bos_token"] is False
    assert "add_generation_prompt" in config["chat_template"]


def test_values_are_those_of_the_reference_in_bf16(smollm2_gguf: Path, smollm2_artifact: Path) -> None:
    tensors = open_artifact(smollm2_artifact).tensors
    reader = {t.name: t for t in GGUFReader(smollm2_gguf).tensors}

    def reference(name: str) -> torch.Tensor:
        values: Any = reference_dequantize(reader[name].data, reader[name].tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32)).to(torch.bfloat16)

    assert torch.equal(tensors["embed.weight"], reference("token_embd.weight"))
    assert torch.equal(tensors["norm.weight"], reference("output_norm.weight"))
    for i in (0, 17, 29):
        ours = {name.split(".", 2)[2]: t for name, t in tensors.items() if name.startswith(f"layers.{i}.")}
        q, k, v = ours["attention.qkv.weight"].split([576, 192, 192])
        # row 2j+h of a head in GGUF is row 32h+j in ours
        order = torch.arange(64).view(2, 32).T.reshape(-1)
        for mine, name, heads in ((q, "attn_q", 9), (k, "attn_k", 3)):
            assert torch.equal(
                mine.view(heads, 64, 576)[:, order].reshape(-1, 576), reference(f"blk.{i}.{name}.weight")
            )
        assert torch.equal(v, reference(f"blk.{i}.attn_v.weight"))
        gate_up = torch.cat([reference(f"blk.{i}.ffn_gate.weight"), reference(f"blk.{i}.ffn_up.weight")])
        assert torch.equal(ours["mlp.gate_up.weight"], gate_up)
        for mine, name in (("mlp.down", "ffn_down"), ("attention.o", "attn_output"), ("attn_norm", "attn_norm")):
            assert torch.equal(ours[f"{mine}.weight"], reference(f"blk.{i}.{name}.weight"))


def test_it_still_knows_the_capital_of_france(smollm2_artifact: Path, tokenizer: Tokenizer) -> None:
    artifact = open_artifact(smollm2_artifact)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=576,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            intermediate_size=1536,
            vocab_size=49152,
            rope_parameters={"rope_type": "default", "rope_theta": artifact.config["rope_theta"]},
            tie_word_embeddings=True,
        )
    )
    model.load_state_dict(to_hugging_face(artifact.tensors, 30, [576, 192, 192]))
    prompt = torch.tensor([tokenizer.encode("The capital of France is").ids])
    ids: Any = model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=2)
    assert " Paris" in tokenizer.decode(ids[0].tolist())


def to_hugging_face(tensors: dict[str, torch.Tensor], layers: int, rows: list[int]) -> dict[str, torch.Tensor]:
    """The state dict of transformers' Llama from an artifact's tensors."""
    state = {
        "model.embed_tokens.weight": tensors["embed.weight"],
        "model.norm.weight": tensors["norm.weight"],
        "lm_head.weight": tensors.get("lm_head.weight", tensors["embed.weight"]),
    }
    for i in range(layers):
        mine, theirs = f"layers.{i}.", f"model.layers.{i}."
        state |= {
            theirs + "input_layernorm.weight": tensors[mine + "attn_norm.weight"],
            theirs + "post_attention_layernorm.weight": tensors[mine + "mlp_norm.weight"],
            theirs + "self_attn.o_proj.weight": tensors[mine + "attention.o.weight"],
            theirs + "mlp.down_proj.weight": tensors[mine + "mlp.down.weight"],
        }
        for name, part in zip("qkv", tensors[mine + "attention.qkv.weight"].split(rows), strict=True):
            state[f"{theirs}self_attn.{name}_proj.weight"] = part
        for name, part in zip(("gate", "up"), tensors[mine + "mlp.gate_up.weight"].chunk(2), strict=True):
            state[f"{theirs}mlp.{name}_proj.weight"] = part
    return {name: tensor.float() for name, tensor in state.items()}


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world! It's 2024; I'll pay $1,234.56.",
        "日本語のテキスト、한국어 텍스트, 中文文本。",
        "Съешь ещё этих мягких французских булок",
        "العربية עברית हिन्दी ไทย ελληνικά",
        "😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 é ﬁ",
        "def f(x):\n\treturn {'a': x ** 2}  # ok\n\n\n",
        "   leading and trailing   ",
        "\r\n\r\n\ttabs\t\t",
        "",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= i < 49152 for i in ids)


def test_digits_stand_alone_and_control_tokens_are_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids[0] == 1
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>").ids[-1] == 2
    tokenizer.encode_special_tokens = True
    try:
        typed = tokenizer.encode("<|im_end|>").ids
        assert 2 not in typed
        assert len(typed) > 1
    finally:
        tokenizer.encode_special_tokens = False
