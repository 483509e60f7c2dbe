"""Packs a batch as one flat row of tokens, with the places of its keys and values. Knows nothing of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_plane.engine.batch import Batch, Row
from kernels.ops import Segment


@dataclass(frozen=True, slots=True)
class Inputs:
    """`token_ids`, `positions` and `slots` are int64 [T]; one segment a row."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    segments: list[Segment]


def pack(batch: Batch, block_size: int, device: torch.device) -> Inputs:
    """The batch's rows one after the other, in its order."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    segments: list[Segment] = []
    for row in batch.rows:
        segments.append(Segment(len(token_ids), len(row.tokens), row.stop, _context_slots(row, block_size, device)))
        token_ids.extend(row.tokens)
        positions.extend(range(row.start, row.stop))
        slots.extend(_own_slots(row, block_size))
    # one tensor, hence one copy to the device
    packed = torch.tensor([token_ids, positions, slots], dtype=torch.int64).to(device, non_blocking=True)
    return Inputs(packed[0], packed[1], packed[2], segments)


def _are_neighbours(ids: Sequence[int]) -> bool:
    return list(ids) == list(range(ids[0], ids[0] + len(ids)))


def _own_slots(row: Row, block_size: int) -> range | list[int]:
    ids = row.blocks
    if _are_neighbours(ids):
        base = ids[0] * block_size
        return range(base + row.start, base + row.stop)
    return [ids[at // block_size] * block_size + at % block_size for at in range(row.start, row.stop)]


def _context_slots(row: Row, block_size: int, device: torch.device) -> slice | Tensor:
    ids = row.blocks
    if _are_neighbours(ids):
        return slice(ids[0] * block_size, ids[0] * block_size + row.stop)
    blocks = torch.tensor(ids, dtype=torch.int64).unsqueeze(1) * block_size
    return (blocks + torch.arange(block_size)).view(-1)[: row.stop].to(device)
