"""RMS norm. y = x / sqrt(mean(x²) + eps) · weight."""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` [..., D], `weight` [D], both of one dtype; computed in float32 inside.

    torch's own is one call of 12 / 21 / 101 µs at 1 / 32 / 512 rows of 576 in bfloat16 (EPYC, 2 threads); the five
    operators written out take 15 / 25 / 121.
    """
    return F.rms_norm(x, (x.shape[-1],), weight, eps)
