"""x · Wᵀ + b. Knows nothing of what the product means."""

import torch.nn.functional as F
from torch import Tensor


class Linear:
    """`weight` [out, in], `bias` [out] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
