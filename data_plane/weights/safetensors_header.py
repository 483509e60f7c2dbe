"""The safetensors format: a bounded reader of headers, the mapping of a file, and the header's writer.

A file is: header length (u64 little-endian), header (JSON: name -> dtype, shape, data_offsets), data. Everything
is checked before anything is allocated by its numbers. Knows nothing of models, and nothing of torch, whose import
takes longer than all else that a cold start does.
"""

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from data_plane.weights.bounded_json import parse_object
from data_plane.weights.errors import ArtifactError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 8
ALIGNMENT = 64
PADDING_PREFIX = "__padding__."
"""The format allows no holes, so what aligns the next tensor is a U8 tensor of its own, under this prefix."""

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one element, by the format's name of its dtype."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is to be: `dtype` by the format's name (a key of ITEM_BYTES)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor: `dtype` is the format's name of it; `start` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def _span(name: str, entry: object, data_start: int) -> TensorSpan:
    if not isinstance(entry, dict):
        raise ArtifactError(f"tensor {name[:100]!r} is described by a {type(entry).__name__}, not by an object")
    fields = cast("dict[str, Any]", entry)
    if set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"tensor {name[:100]!r} must have dtype, shape and data_offsets, nothing more or less")
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ArtifactError(f"tensor {name[:100]!r} has the unknown dtype {str(dtype)[:50]!r}")
    shape, offsets = _ints(name, fields["shape"], MAX_DIMS), _ints(name, fields["data_offsets"], 2)
    if len(offsets) != 2:
        raise ArtifactError(f"tensor {name[:100]!r} has {len(offsets)} data_offsets where two are needed")
    start, end = offsets
    needed = prod(shape) * ITEM_BYTES[dtype]
    if end - start != needed:
        raise ArtifactError(f"tensor {name[:100]!r} spans {end - start} bytes, but its shape and dtype need {needed}")
    return TensorSpan(name, dtype, shape, data_start + start, data_start + end)


def _ints(name: str, value: object, most: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(cast("list[object]", value)) > most:
        raise ArtifactError(f"tensor {name[:100]!r}: shape and data_offsets must be lists of at most {most} numbers")
    numbers = cast("list[object]", value)
    for number in numbers:
        if type(number) is not int or not 0 <= number < 1 << 48:
            raise ArtifactError(f"tensor {name[:100]!r} has the number {str(number)[:50]} where a size is needed")
    return tuple(cast("list[int]", numbers))


def read_header(path: Path) -> list[TensorSpan]:
    """The tensors of the file in the order of their bytes. Raises ArtifactError on whatever contradicts itself."""
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{path.name} is missing in {path.parent}, or is not a regular file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ArtifactError(
                f"{path.name} announces a header of {length} bytes; the file has {size} and at most "
                f"{MAX_HEADER_BYTES} are allowed: the file is truncated or is not safetensors"
            )
        header = parse_object(file.read(length), f"the header of {path.name}")
    header.pop("__metadata__", None)
    spans = sorted((_span(name, entry, 8 + length) for name, entry in header.items()), key=lambda s: (s.start, s.end))
    position = 8 + length
    for span in spans:
        if span.start != position:
            raise ArtifactError(
                f"{path.name}: tensor {span.name[:100]!r} starts at byte {span.start} where {position} is due: "
                "tensors must follow each other without hole or overlap"
            )
        position = span.end
    if position != size:
        raise ArtifactError(f"{path.name} has {size} bytes where its header accounts for {position}; get it again")
    return spans


def map_file(path: Path, spans: Sequence[TensorSpan]) -> mmap.mmap:
    """The file, read-only and shared between processes, checked to hold every byte that `spans` name."""
    size = path.stat().st_size
    if size == 0 or (spans and max(span.end for span in spans) > size):
        raise ArtifactError(f"{path.name} shrank to {size} bytes while it was opened")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def plan_header(layout: Mapping[str, TensorSpec]) -> tuple[bytes, list[TensorSpan]]:
    """The leading bytes (length and header) and the spans of a file that holds `layout`, in order, each aligned."""
    plan: list[tuple[str, TensorSpec, int]] = []
    position = 0
    for name, spec in layout.items():
        if hole := -position % ALIGNMENT:
            plan.append((f"{PADDING_PREFIX}{len(plan)}", TensorSpec("U8", (hole,)), position))
            position += hole
        plan.append((name, spec, position))
        position += spec.num_bytes
    entries: dict[str, dict[str, Any]] = {
        name: {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, start + spec.num_bytes]}
        for name, spec, start in plan
    }
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode()
    # trailing spaces are allowed by the format; they put the first tensor on an aligned byte of the file
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    lead = len(header).to_bytes(8, "little") + header
    return lead, [
        TensorSpan(name, spec.dtype, spec.shape, len(lead) + start, len(lead) + start + spec.num_bytes)
        for name, spec, start in plan
    ]
