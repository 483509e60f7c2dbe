"""x · Wᵀ + b, by the form in which W is stored. Knows nothing of what the product means."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ops


class Projection(Protocol):
    """A matrix [out, in] that can be multiplied with, and whose rows can be looked up."""

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] to [T, out], in x's dtype."""
        ...

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows `ids` int64 [T], as values in `dtype`: [T, in]."""
        ...


class Linear:
    """`weight` [out, in], `bias` [out] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)


class Int8Linear:
    """`q` int8 [out, in], `scale` float32 [out], `bias` [out] or None."""

    def __init__(self, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        self.q = q
        self.scale = scale
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return ops.int8_linear(x, self.q, self.scale, self.bias)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return ops.dequantize_int8(self.q[ids], self.scale[ids]).to(dtype)


class Int4Linear:
    """`codes` uint8 [out, in] of 0 to 15, `scale` and `minimum` float32 [out, in / group], `bias` [out] or None."""

    def __init__(self, codes: Tensor, scale: Tensor, minimum: Tensor, bias: Tensor | None = None) -> None:
        self.codes = codes
        self.scale = scale
        self.minimum = minimum
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return ops.int4_linear(x, self.codes, self.scale, self.minimum, self.bias)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return ops.dequantize_int4(self.codes[ids], self.scale[ids], self.minimum[ids]).to(dtype)
