"""Quantized matrices, from tiles of 16 rows back to rows and columns. Knows nothing of files or of products.

Let W be [N, K] (out, in), N16 and K64 the sizes rounded up, all padding zero.

* int8 tiles [N16/16, K64/4, 16, 4]: element [t, j, o, i] is row 16t+o, column 4j+i.
* int4 tiles [N16/16, K/32, 4, 64]: in [t, g, j], byte 4o+i holds in its low half the code of row 16t+o, column
  32g+8j+i, and in its high half that of column 32g+8j+4+i.
* group values [N16/16, K/G, 16]: in [t, g], value o belongs to row 16t+o, columns Gg to Gg+G.
"""

import torch
from torch import Tensor


def rows_of_int8(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """int8 tiles give int8 [rows, columns]."""
    count, quads, tile, four = tiles.shape
    return tiles.transpose(1, 2).reshape(count * tile, quads * four)[:rows, :columns].contiguous()


def rows_of_int4(tiles: Tensor, rows: int) -> Tensor:
    """int4 tiles give codes 0 to 15, uint8 [rows, K]."""
    count, groups, eights, _ = tiles.shape
    halves = torch.stack((tiles & 0x0F, tiles >> 4), dim=3)
    # [t, g, j, half, o, i] to [t, o, g, j, half, i]
    ordered = halves.view(count, groups, eights, 2, 16, 4).permute(0, 4, 1, 2, 3, 5)
    return ordered.reshape(count * 16, groups * eights * 8)[:rows]


def rows_of_groups(values: Tensor, rows: int) -> Tensor:
    """Group values give float32 [rows, K/G]."""
    count, groups, tile = values.shape
    return values.transpose(1, 2).reshape(count * tile, groups)[:rows].float()


def dequantize_int8(q: Tensor, scale: Tensor) -> Tensor:
    """scale · q: `q` int8 [N, K] and `scale` float32 [N] give float32 [N, K]."""
    return q.float() * scale[:, None]


def dequantize_int4(codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """scale · code + min: `codes` uint8 [N, K], the others float32 [N, K/G], give float32 [N, K]."""
    rows, groups = scale.shape
    grouped = codes.view(rows, groups, -1).float()
    return (grouped * scale[..., None] + minimum[..., None]).view(rows, -1)
