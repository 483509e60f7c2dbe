"""The table of rotary angles: one row a position, made once. Knows nothing of heads."""

import math

import torch
from torch import Tensor


def linear_frequencies(head_dim: int, theta: float, factor: float = 1.0) -> Tensor:
    """theta^(-2i/D) for i in 0..D/2, divided by `factor` (position interpolation); float32 [D/2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / theta**exponents / factor


def llama3_frequencies(
    head_dim: int, theta: float, *, factor: float, low_freq_factor: float, high_freq_factor: float, original_length: int
) -> Tensor:
    """Llama 3.1's stretch: long waves are divided by `factor`, short ones kept, those between blended; [D/2]."""
    frequencies = linear_frequencies(head_dim, theta)
    turns = original_length * frequencies / (2 * math.pi)
    blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return frequencies * (blend + (1 - blend) / factor)


class RotaryTable:
    """cos and sin for positions 0 to `length`, float32, laid out as `kernels.ops.rotate_` wants them."""

    def __init__(self, frequencies: Tensor, length: int, device: torch.device) -> None:
        angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        self.cos = torch.cat((cos, cos), dim=-1).unsqueeze(1).to(device)
        self.sin = torch.cat((-sin, sin), dim=-1).unsqueeze(1).to(device)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), each [T, 1, D], for `positions` int64 [T]."""
        return self.cos[positions], self.sin[positions]
