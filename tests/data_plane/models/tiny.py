"""Tiny random models of the Llama family, as `transformers` runs them and as Ebb's artifact names their tensors."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from data_plane.weights.layout import ModelConfig, parse_config

SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 77,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.4,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "attn_implementation": "eager",
}
"""Odd on purpose: the heads together (60) are not the hidden size, and nothing but the context is a power of two."""

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "llama-tied": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama-linear": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 20000.0}},
    ),
    "llama-llama3": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 500.0,
            }
        },
    ),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"head_dim": 8}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {}),
}


@dataclass
class Tiny:
    """The same weights twice: in `transformers`, and in Ebb's names and configuration."""

    hf: Any
    config: ModelConfig
    tensors: dict[str, Tensor]

    def hf_logits(self, tokens: list[int]) -> Tensor:
        """[tokens, vocabulary], by `transformers`."""
        with torch.inference_mode():
            return self.hf(torch.tensor([tokens])).logits[0]


def make_tiny(family: str, seed: int = 0) -> Tiny:
    config_class, model_class, changes = FAMILIES[family]
    torch.manual_seed(seed)
    hf_config = config_class(**{**SHAPE, **changes})
    hf = model_class(hf_config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            # biases start at 0 and norms at 1: both would hide a mistake
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    state = hf.state_dict()
    rope = dict(hf_config.rope_parameters)
    config = parse_config(
        {
            "architecture": "llama",
            "hidden_size": hf_config.hidden_size,
            "num_layers": hf_config.num_hidden_layers,
            "num_heads": hf_config.num_attention_heads,
            "num_kv_heads": hf_config.num_key_value_heads,
            "head_dim": getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads,
            "intermediate_size": hf_config.intermediate_size,
            "vocab_size": hf_config.vocab_size,
            "max_position_embeddings": hf_config.max_position_embeddings,
            "rope_theta": rope["rope_theta"],
            "rope_scaling": rope if rope["rope_type"] != "default" else None,
            "rms_norm_eps": hf_config.rms_norm_eps,
            "tie_word_embeddings": hf_config.tie_word_embeddings,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in state,
            "qk_norm": "model.layers.0.self_attn.q_norm.weight" in state,
            "eos_token_ids": [2],
            "bos_token_id": 1,
            "dtype": "float32",
        }
    )
    return Tiny(hf, config, _rename(state, config))


def _rename(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    tensors = {"embed.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = state["lm_head.weight"]
    for at in range(config.num_layers):
        theirs, ours = f"model.layers.{at}", f"layers.{at}"
        for kind in ["weight", "bias"] if config.attention_bias else ["weight"]:
            parts = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{ours}.attention.qkv.{kind}"] = torch.cat(parts)
        gate_up = [state[f"{theirs}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
        tensors[f"{ours}.mlp.gate_up.weight"] = torch.cat(gate_up)
        tensors[f"{ours}.mlp.down.weight"] = state[f"{theirs}.mlp.down_proj.weight"]
        tensors[f"{ours}.attention.o.weight"] = state[f"{theirs}.self_attn.o_proj.weight"]
        tensors[f"{ours}.attn_norm.weight"] = state[f"{theirs}.input_layernorm.weight"]
        tensors[f"{ours}.mlp_norm.weight"] = state[f"{theirs}.post_attention_layernorm.weight"]
        if config.qk_norm:
            for part in ("q_norm", "k_norm"):
                tensors[f"{ours}.attention.{part}.weight"] = state[f"{theirs}.self_attn.{part}.weight"]
    return tensors
