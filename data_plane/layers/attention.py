"""Self-attention over the paged cache. Knows nothing of requests: a step says where queries, keys and values lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from data_plane.layers.linear import Projection
from data_plane.layers.norm import RMSNorm
from kernels import ops


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers share in one step: angles [T, 1, D], the slots to write [T], the sequences to read."""

    cos: Tensor
    sin: Tensor
    slots: Tensor
    segments: Sequence[ops.Segment]


class Attention:
    """Grouped-query attention with fused q, k and v; `q_norm` and `k_norm` are Qwen3's norms of each head."""

    def __init__(
        self,
        qkv: Projection,
        o: Projection,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        qk_norm: tuple[RMSNorm, RMSNorm] | None,
    ) -> None:
        self.qkv = qkv
        self.o = o
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.qk_norm = qk_norm

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> Tensor:
        """`x` [T, hidden]; `cache` [slots, 2, KV heads, D] of this layer, which gets this step's keys and values."""
        tokens = x.shape[0]
        qkv = self.qkv(x).view(tokens, self.heads + 2 * self.kv_heads, self.head_dim)
        q = qkv[:, : self.heads]
        if self.qk_norm is not None:
            q_norm, k_norm = self.qk_norm
            k = qkv[:, self.heads : self.heads + self.kv_heads]
            q.copy_(q_norm(q))
            k.copy_(k_norm(k))
        # q and k are neighbours, so one call turns both, in place
        ops.rotate_(qkv[:, : self.heads + self.kv_heads], step.cos, step.sin)
        kv = qkv[:, self.heads :].view(tokens, 2, self.kv_heads, self.head_dim)
        ops.store_kv_(cache, kv, step.slots)
        out = ops.paged_attention(q, cache, step.segments, self.head_dim**-0.5)
        return self.o(out.view(tokens, -1))
