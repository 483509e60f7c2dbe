"""Matrices to whole numbers and their factors, and these into tiles (see `weights.stored`). Knows nothing of files.

int8 keeps one scale a row, int4 a scale and a minimum for each group of columns. Both round to the nearest; int4's
factors are searched for the least squared error, as a group's two outermost values rarely deserve to span its 16
steps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data_plane.weights.stored import TILE_ROWS, round_up

INT4_GROUP = 32
"""Columns a scale: those of GGUF's blocks. 64 would save half a bit of 5 and costs quality that small models lack."""
_SHRINKS = (1.0, 0.94, 0.87, 0.8)
_CHUNK_VALUES = 1 << 19
"""Values searched at a time: 2 MB of float32, so that the passes stay in the cache."""
_FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Int4Matrix:
    """`codes` uint8 [N, K] of 0 to 15; `scale` and `minimum` float16 [N, K/G]. A value is scale · code + minimum."""

    codes: Tensor
    scale: Tensor
    minimum: Tensor


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [N, K] gives q int8 [N, K] and scale float32 [N]; a row's largest magnitude is 127 · scale."""
    values = weight.float()
    scale = values.abs().amax(dim=1) / 127
    divisor = torch.where(scale == 0, 1.0, scale)[:, None]
    return (values / divisor).round_().clamp_(-127, 127).to(torch.int8), scale


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [N, K] gives float8_e4m3fn [N, K] and scale float32 [N]; a row's largest magnitude is 448 · scale."""
    values = weight.float()
    scale = values.abs().amax(dim=1) / _FP8_MAX
    divisor = torch.where(scale == 0, 1.0, scale)[:, None]
    return (values / divisor).clamp_(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn), scale


def quantize_int4(weight: Tensor, group: int = INT4_GROUP) -> Int4Matrix:
    """float [N, K] with K a multiple of `group`; of a few ranges and their least-squares fits, each group's best."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scale = torch.empty(rows, columns // group, dtype=torch.float16)
    minimum = torch.empty_like(scale)
    step = max(1, _CHUNK_VALUES // columns)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        values = weight[part].float().reshape(-1, group)
        found = _search(values)
        shape = codes[part].shape[0], -1
        codes[part], scale[part], minimum[part] = (each.view(shape) for each in found)
    return Int4Matrix(codes, scale, minimum)


def _search(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[groups, G] give codes uint8 [groups, G], scale and minimum float16 [groups, 1]."""
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    least = torch.full_like(low, torch.inf)
    scale, minimum = torch.zeros_like(low, dtype=torch.float16), low.half()
    middle, half = (low + high) / 2, (high - low) / 2
    for shrink in _SHRINKS:
        trial = _fit(values, middle - half * shrink, half * (2 * shrink / 15))
        for candidate in ((half * (2 * shrink / 15), middle - half * shrink), trial):
            s, m = candidate[0].half(), candidate[1].half()
            error = _error(values, s, m)
            better = error < least
            least = torch.where(better, error, least)
            scale, minimum = torch.where(better, s, scale), torch.where(better, m, minimum)
    return _codes(values, scale.float(), minimum.float()).to(torch.uint8), scale, minimum


def _codes(values: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The nearest of 16 steps, as float32; a scale of 0 gives code 0."""
    return torch.where(scale == 0, 0.0, (values - minimum) / scale).round_().clamp_(0, 15)


def _error(values: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The squared error of each group, [groups, 1], with the factors as they will be stored."""
    s, m = scale.float(), minimum.float()
    return torch.addcmul(m, _codes(values, s, m), s).sub_(values).square_().sum(dim=1, keepdim=True)


def _fit(values: Tensor, minimum: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The (scale, minimum) of the line that best gives the values from the codes that these factors choose."""
    codes = _codes(values, scale, minimum)
    count = values.shape[1]
    sum_c, sum_v = codes.sum(1, keepdim=True), values.sum(1, keepdim=True)
    spread = count * codes.square().sum(1, keepdim=True) - sum_c.square()
    slope = (count * (codes * values).sum(1, keepdim=True) - sum_c * sum_v) / spread
    slope = torch.where(spread == 0, scale, slope)
    return slope, (sum_v - slope * sum_c) / count


def tile_int8(q: Tensor) -> Tensor:
    """int8 [N, K] into tiles [N16/16, K64/4, 16, 4]."""
    rows, columns = q.shape
    padded = F.pad(q, (0, round_up(columns, 64) - columns, 0, round_up(rows, TILE_ROWS) - rows))
    return padded.view(-1, TILE_ROWS, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()


def tile_int4(codes: Tensor) -> Tensor:
    """uint8 codes [N, K], K a multiple of 32, into tiles [N16/16, K/32, 4, 64]."""
    rows, columns = codes.shape
    padded = F.pad(codes, (0, 0, 0, round_up(rows, TILE_ROWS) - rows))
    # [t, o, g, j, half, i] to [t, g, j, half, o, i]
    halves = padded.view(-1, TILE_ROWS, columns // 32, 4, 2, 4).permute(0, 2, 3, 4, 1, 5)
    low, high = halves.unbind(3)
    return (low | high << 4).reshape(-1, columns // 32, 4, 64)


def tile_groups(values: Tensor) -> Tensor:
    """float16 [N, K/G] into [N16/16, K/G, 16]."""
    rows, groups = values.shape
    padded = F.pad(values, (0, 0, 0, round_up(rows, TILE_ROWS) - rows))
    return padded.view(-1, TILE_ROWS, groups).transpose(1, 2).contiguous()
