"""The Llama decoder (Touvron et al., 2023) and its near kin: Mistral, Qwen2 (bias on q, k, v), Qwen3 (q and k normed).

Knows nothing of requests, of ranks, or of where its weights came from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_plane.layers.attention import Attention, Step
from data_plane.layers.embedding import Embedding
from data_plane.layers.linear import Projection
from data_plane.layers.norm import RMSNorm
from data_plane.layers.rotary import RotaryTable, linear_frequencies, llama3_frequencies
from data_plane.models.placing import projection
from data_plane.weights.layout import ModelConfig, tensor_layout
from kernels import ops


@dataclass(frozen=True, slots=True)
class MLP:
    """SwiGLU: down(silu(gate(x)) · up(x)), gate and up in one product."""

    gate_up: Projection
    down: Projection

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(ops.silu_mul(self.gate_up(x)))


@dataclass(frozen=True, slots=True)
class Layer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    attn_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: MLP

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attn_norm(x), cache, step)
        return x + self.mlp(self.mlp_norm(x))


class Llama:
    """Token ids to hidden states, and hidden states to logits."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], max_model_len: int) -> None:
        self.config = config
        norm, vocabulary = tensors["norm.weight"], (config.vocab_size, config.hidden_size)
        table = projection(tensors, "embed", vocabulary)
        self.embed = Embedding(table, norm.dtype)
        shapes = tensor_layout(config)
        self.layers = [_layer(config, tensors, shapes, f"layers.{at}") for at in range(config.num_layers)]
        self.norm = RMSNorm(norm, config.rms_norm_eps)
        self.lm_head = table if config.tie_word_embeddings else projection(tensors, "lm_head", vocabulary)
        self.rotary = RotaryTable(_frequencies(config), max_model_len, norm.device)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        segments: Sequence[ops.Segment],
        caches: Sequence[Tensor],
    ) -> Tensor:
        """`token_ids`, `positions`, `slots` int64 [T]; a cache per layer. Gives the last hidden states [T, hidden]."""
        cos, sin = self.rotary(positions)
        step = Step(cos, sin, slots, segments)
        x = self.embed(token_ids)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache, step)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] to [rows, vocabulary], in the model's dtype."""
        return self.lm_head(self.norm(hidden))


def _layer(
    config: ModelConfig, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> Layer:
    def norm(name: str) -> RMSNorm:
        return RMSNorm(tensors[f"{prefix}.{name}.weight"], config.rms_norm_eps)

    def linear(name: str) -> Projection:
        return projection(tensors, f"{prefix}.{name}", shapes[f"{prefix}.{name}.weight"])

    attention = Attention(
        linear("attention.qkv"),
        linear("attention.o"),
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        qk_norm=(norm("attention.q_norm"), norm("attention.k_norm")) if config.qk_norm else None,
    )
    mlp = MLP(linear("mlp.gate_up"), linear("mlp.down"))
    return Layer(norm("attn_norm"), attention, norm("mlp_norm"), mlp)


def _frequencies(config: ModelConfig) -> torch.Tensor:
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "llama3":
        return llama3_frequencies(
            config.head_dim,
            config.rope_theta,
            factor=scaling["factor"],
            low_freq_factor=scaling["low_freq_factor"],
            high_freq_factor=scaling["high_freq_factor"],
            original_length=scaling["original_max_position_embeddings"],
        )
    return linear_frequencies(config.head_dim, config.rope_theta, scaling.get("factor", 1.0))
