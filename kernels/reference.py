"""The plain-torch twin of every kernel: the formula as in the paper, slow, in float32; fallback and oracle of tests.

Same names and arguments as behind the door (`kernels.ops`). Knows nothing of speed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.segments import Segment


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight, over the last dimension (Zhang and Sennrich, 2019)."""
    y = x.float()
    return (y / torch.sqrt((y * y).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) · up for `gate_up` [T, 2F], gate first (Shazeer, 2020)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(gate_up.dtype)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[i], x[i + D/2]) of `x` [T, H, D] by its angle, in place; cos, sin [T, 1, D] (Su et al., 2021).

    `cos` holds each cosine twice; `sin` holds -sine, then sine.
    """
    half = x.shape[-1] // 2
    first, second = x.to(torch.float32, copy=True).split(half, dim=-1)
    cosine, sine = cos[..., :half], sin[..., half:]
    x[..., :half] = (first * cosine - second * sine).to(x.dtype)
    x[..., half:] = (second * cosine + first * sine).to(x.dtype)
    return x


def store_kv_(cache: Tensor, kv: Tensor, slots: Tensor) -> None:
    """cache[slots[t]] = kv[t], for `cache` [slots, 2, KV heads, D] and `kv` [T, 2, KV heads, D]."""
    for token, slot in enumerate(slots.tolist()):
        cache[slot] = kv[token]


def paged_attention(q: Tensor, cache: Tensor, segments: Sequence[Segment], scale: float) -> Tensor:
    """softmax(q·kᵀ · scale)·v, causal, per sequence and head; `q` [T, heads, D] gives [T, heads, D]."""
    out = torch.empty_like(q)
    group = q.shape[1] // cache.shape[2]
    for segment in segments:
        k, v = cache[segment.slots].float().unbind(1)
        for row in range(segment.num_queries):
            token, seen = segment.first_query + row, segment.context_length - segment.num_queries + row + 1
            for head in range(q.shape[1]):
                scores = k[:seen, head // group] @ q[token, head].float() * scale
                out[token, head] = (torch.softmax(scores, 0) @ v[:seen, head // group]).to(q.dtype)
    return out


def int8_linear(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · (scale · q)ᵀ + b with each token's x rounded to 255 steps first; `q` int8 [N, K], `scale` [N]."""
    out = torch.empty(x.shape[0], q.shape[0], dtype=torch.float32)
    for token, values in enumerate(x.float()):
        s = values.abs().max() / 127
        a = torch.zeros_like(values, dtype=torch.int64) if s == 0 else torch.round(values / s).long()
        out[token] = (a * q.long()).sum(1).float() * (s * scale)
    return (out if bias is None else out + bias).to(x.dtype)


def int4_linear(x: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · (scale · code + min)ᵀ + b with x rounded to 255 steps by token and group of 32; `codes` [N, K] of 0 to 15,
    `scale` and `minimum` [N, K/G]."""
    out = torch.zeros(x.shape[0], codes.shape[0], dtype=torch.float32)
    size = codes.shape[1] // scale.shape[1]
    for token, values in enumerate(x.float()):
        for first in range(0, codes.shape[1], 32):
            group = values[first : first + 32]
            s = group.abs().max() / 127
            a = torch.zeros_like(group, dtype=torch.int64) if s == 0 else torch.round(group / s).long()
            dot = (a * codes[:, first : first + 32].long()).sum(1).float()
            at = first // size
            out[token] += dot * (s * scale[:, at]) + (s * a.sum().float()) * minimum[:, at]
    return (out if bias is None else out + bias).to(x.dtype)
