"""Small GGUFs written by the gguf package, as llama.cpp's converter would write them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, LAYERS = 64, 4, 2, 16, 96, 2


def byte_alphabet() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What the converter does to Llama's q and k: halves become neighbours."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def hugging_face_tensors(architecture: str, vocab: int, *, tied: bool, bias: bool) -> dict[str, torch.Tensor]:
    """Random weights under Hugging Face's names."""
    generator = torch.Generator().manual_seed(7)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors = {"model.embed_tokens.weight": rand(vocab, HIDDEN), "model.norm.weight": rand(HIDDEN)}
    for i in range(LAYERS):
        name = f"model.layers.{i}."
        tensors |= {
            name + "input_layernorm.weight": rand(HIDDEN),
            name + "self_attn.q_proj.weight": rand(q, HIDDEN),
            name + "self_attn.k_proj.weight": rand(kv, HIDDEN),
            name + "self_attn.v_proj.weight": rand(kv, HIDDEN),
            name + "self_attn.o_proj.weight": rand(HIDDEN, q),
            name + "post_attention_layernorm.weight": rand(HIDDEN),
            name + "mlp.gate_proj.weight": rand(INTERMEDIATE, HIDDEN),
            name + "mlp.up_proj.weight": rand(INTERMEDIATE, HIDDEN),
            name + "mlp.down_proj.weight": rand(HIDDEN, INTERMEDIATE),
        }
        if bias:
            tensors |= {f"{name}self_attn.{part}_proj.bias": rand(n) for part, n in (("q", q), ("k", kv), ("v", kv))}
        if architecture == "qwen3":
            tensors |= {f"{name}self_attn.{part}_norm.weight": rand(HEAD_DIM) for part in "qk"}
    if not tied:
        tensors["lm_head.weight"] = rand(vocab, HIDDEN)
    return tensors


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, _, index, rest = stem.split(".", 3)
    return f"blk.{index}.{_NAMES[rest]}.{kind}"


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    tied: bool = False,
    bias: bool = False,
    extra: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    pre: str = "gpt-2",
) -> dict[str, torch.Tensor]:
    """Writes a tiny model and returns what is in it under Hugging Face's names. `extra`: metadata, as uint32 or
    float32 or strings by their Python type."""
    tokens = ["<|end|>", "<|begin|>", *byte_alphabet(), "Ġt", "he", "Ġthe"]
    tensors = hugging_face_tensors(architecture, len(tokens), tied=tied, bias=bias)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    for key, value in (extra or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    for name, tensor in tensors.items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2], 0)
        moved = permute(tensor, heads) if heads and architecture == "llama" else tensor
        writer.add_tensor(gguf_name(name), moved.contiguous().numpy())
    for name, array in (extra_tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
