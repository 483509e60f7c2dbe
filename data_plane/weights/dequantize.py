"""GGUF's block formats turned into float32 values, vectorized. Knows nothing of files or models.

A block holds 32 or 256 consecutive values of a row. The layouts are those of ggml's `ggml-common.h`; products and
sums are done one at a time in float32, so that the results equal the reference's bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[Any]

_CHUNK_VALUES = 1 << 20
"""Values converted at a time: 4 MB of float32, so that a chunk stays in the cache and memory stays flat."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """A format: `values` per block, and how an array of blocks becomes float32 [blocks, values]."""

    name: str
    values: int
    block: np.dtype[Any]
    decode: Callable[[Any], Floats]

    @property
    def block_bytes(self) -> int:
        return self.block.itemsize


def _column(values: Any) -> Floats:
    """Per-block factors as float32, shaped to broadcast over the block's values."""
    return values.astype(np.float32)[..., None]


def _nibbles(packed: Bytes) -> Bytes:
    """[…, n] bytes -> […, 2n] values 0 to 15: all low halves, then all high halves."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """[n, 4] bytes -> [n, 32]: bit i of the little-endian word, moved to the place of a 16."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << 4


def _plain(blocks: Any) -> Floats:
    return blocks["q"].astype(np.float32)


def _bf16(blocks: Any) -> Floats:
    return (blocks["q"].astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks: Any) -> Floats:
    return blocks["q"].astype(np.float32) * _column(blocks["d"])


def _q4_0(blocks: Any) -> Floats:
    return (_nibbles(blocks["q"]).astype(np.int8) - np.int8(8)).astype(np.float32) * _column(blocks["d"])


def _q4_1(blocks: Any) -> Floats:
    return _nibbles(blocks["q"]).astype(np.float32) * _column(blocks["d"]) + _column(blocks["m"])


def _q5_0(blocks: Any) -> Floats:
    values = (_nibbles(blocks["q"]) | _fifth_bits(blocks["h"])).astype(np.int8) - np.int8(16)
    return values.astype(np.float32) * _column(blocks["d"])


def _q5_1(blocks: Any) -> Floats:
    values = (_nibbles(blocks["q"]) | _fifth_bits(blocks["h"])).astype(np.float32)
    return values * _column(blocks["d"]) + _column(blocks["m"])


def _k_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes -> 8 scales and 8 minima of 6 bits. The last four of each keep their two high bits in the first eight
    bytes' tops, and their four low bits in the last four bytes' halves."""
    scale, minimum, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([scale & 0x3F, (low & 0x0F) | (scale >> 2 & 0x30)], axis=1)
    minima = np.concatenate([minimum & 0x3F, (low >> 4) | (minimum >> 2 & 0x30)], axis=1)
    return scales, minima


def _k_affine(blocks: Any, values: Bytes) -> Floats:
    """`values` [n, 8, 32] scaled and shifted by each of the eight sub-blocks' factors."""
    scales, minima = _k_scales(blocks["s"])
    factor = blocks["d"].astype(np.float32)[:, None] * scales.astype(np.float32)
    shift = blocks["m"].astype(np.float32)[:, None] * minima.astype(np.float32)
    return (values.astype(np.float32) * factor[..., None] - shift[..., None]).reshape(len(blocks), 256)


def _q4_k(blocks: Any) -> Floats:
    return _k_affine(blocks, _nibbles(blocks["q"].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Any) -> Floats:
    low = _nibbles(blocks["q"].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    # sub-block i takes bit i of each of the 32 bytes
    high = blocks["h"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _k_affine(blocks, low | high << 4)


def _q6_k(blocks: Any) -> Floats:
    # two halves of 128 values; in each, 64 bytes of low nibbles and 32 bytes that hold four pairs of high bits
    low = _nibbles(blocks["q"].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = blocks["h"].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & 3
    values = ((low | high << 4).astype(np.int8) - np.int8(32)).reshape(-1, 16, 16)
    factor = blocks["d"].astype(np.float32)[:, None] * blocks["s"].astype(np.float32)
    return (values.astype(np.float32) * factor[..., None]).reshape(len(blocks), 256)


def _block(*fields: tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype([(name, kind, (size,)) if size > 1 else (name, kind) for name, kind, size in fields])


def _single(kind: str) -> np.dtype[Any]:
    return np.dtype([("q", kind, (1,))])


D, M = ("d", "<f2", 1), ("m", "<f2", 1)
QUANTIZATIONS: dict[int, Quantization] = {
    0: Quantization("F32", 1, _single("<f4"), _plain),
    1: Quantization("F16", 1, _single("<f2"), _plain),
    2: Quantization("Q4_0", 32, _block(D, ("q", "u1", 16)), _q4_0),
    3: Quantization("Q4_1", 32, _block(D, M, ("q", "u1", 16)), _q4_1),
    6: Quantization("Q5_0", 32, _block(D, ("h", "u1", 4), ("q", "u1", 16)), _q5_0),
    7: Quantization("Q5_1", 32, _block(D, M, ("h", "u1", 4), ("q", "u1", 16)), _q5_1),
    8: Quantization("Q8_0", 32, _block(D, ("q", "i1", 32)), _q8_0),
    12: Quantization("Q4_K", 256, _block(D, M, ("s", "u1", 12), ("q", "u1", 128)), _q4_k),
    13: Quantization("Q5_K", 256, _block(D, M, ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", 128)), _q5_k),
    14: Quantization("Q6_K", 256, _block(("q", "u1", 128), ("h", "u1", 64), ("s", "i1", 16), D), _q6_k),
    30: Quantization("BF16", 1, _single("<u2"), _bf16),
}
"""By the number that GGUF gives each type."""


def four_bit_blocks(
    kind: Quantization, raw: memoryview, shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The codes of Q4_0 and Q4_1 as they are, for a matrix [N, K]: uint8 [N, K], and scale and minimum float16
    [N, K/32], such that scale · code + minimum is the value to the last bit. None for other kinds, and for a factor
    whose minimum float16 cannot hold."""
    if kind.name not in ("Q4_0", "Q4_1"):
        return None
    blocks = np.frombuffer(raw, dtype=kind.block)
    scale = blocks["d"].astype(np.float16)
    with np.errstate(over="ignore"):
        minimum = blocks["m"].astype(np.float16) if kind.name == "Q4_1" else scale * np.float16(-8)
    if not (np.isfinite(scale).all() and np.isfinite(minimum).all()):
        return None
    codes = torch.from_numpy(_nibbles(blocks["q"])).view(shape)
    factors = (shape[0], shape[1] // kind.values)
    return codes, torch.from_numpy(scale).view(factors), torch.from_numpy(minimum).view(factors)


def dequantize(kind: Quantization, raw: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The values of `raw` (whole blocks) as a new tensor of `shape`, rounded once from float32 to `dtype`."""
    blocks = np.frombuffer(raw, dtype=kind.block)
    values = torch.empty(len(blocks) * kind.values, dtype=dtype)
    step = _CHUNK_VALUES // kind.values
    # 0 * infinity and overflow in a damaged file's factors give NaN, as in the reference; they are not our warnings
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            part = torch.from_numpy(kind.decode(blocks[start : start + step]).reshape(-1))
            values[start * kind.values : start * kind.values + len(part)] = part
    return values.view(shape)
