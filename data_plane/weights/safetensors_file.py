"""The safetensors format: a bounded reader of headers and of mapped tensors, and the header's writer.

A file is: header length (u64 little-endian), header (JSON: name -> dtype, shape, data_offsets), data. Everything
is checked before anything is allocated by its numbers. Knows nothing of models.
"""

import json
import mmap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch

from data_plane.weights.bounded_json import parse_object
from data_plane.weights.errors import ArtifactError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 8
ALIGNMENT = 64
PADDING_PREFIX = "__padding__."
"""The format allows no holes, so what aligns the next tensor is a U8 tensor of its own, under this prefix."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor: `start` and `end` are byte offsets in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def _span(name: str, entry: object, data_start: int) -> TensorSpan:
    if not isinstance(entry, dict):
        raise ArtifactError(f"tensor {name[:100]!r} is described by a {type(entry).__name__}, not by an object")
    fields = cast("dict[str, Any]", entry)
    if set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"tensor {name[:100]!r} must have dtype, shape and data_offsets, nothing more or less")
    dtype = DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise ArtifactError(f"tensor {name[:100]!r} has the unknown dtype {str(fields['dtype'])[:50]!r}")
    shape, offsets = _ints(name, fields["shape"], MAX_DIMS), _ints(name, fields["data_offsets"], 2)
    if len(offsets) != 2:
        raise ArtifactError(f"tensor {name[:100]!r} has {len(offsets)} data_offsets where two are needed")
    start, end = offsets
    needed = prod(shape) * dtype.itemsize
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


def map_tensors(path: Path, spans: Sequence[TensorSpan]) -> dict[str, torch.Tensor]:
    """Tensors that share one read-only mapping of the file: no copy, and never to be written to (that would fault)."""
    size = path.stat().st_size
    if size == 0 or (spans and max(span.end for span in spans) > size):
        raise ArtifactError(f"{path.name} shrank to {size} bytes while it was opened")
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        # torch warns that the buffer is read-only, which is what we want of weights shared between replicas
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return {span.name: _mapped(mapping, span) for span in spans}


def _mapped(mapping: mmap.mmap, span: TensorSpan) -> torch.Tensor:
    count = prod(span.shape)
    if count == 0:
        return torch.empty(span.shape, dtype=span.dtype)
    return torch.frombuffer(mapping, dtype=span.dtype, count=count, offset=span.start).view(span.shape)


def plan_header(layout: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[bytes, list[TensorSpan]]:
    """The leading bytes (length and header) and the spans of a file that holds `layout`, in order, each aligned."""
    entries: dict[str, dict[str, Any]] = {}
    plan: list[tuple[str, torch.dtype, tuple[int, ...], int, int]] = []
    position = 0
    for name, shape in layout.items():
        if hole := -position % ALIGNMENT:
            plan.append((f"{PADDING_PREFIX}{len(plan)}", torch.uint8, (hole,), position, position + hole))
            position += hole
        end = position + prod(shape) * dtype.itemsize
        plan.append((name, dtype, shape, position, end))
        position = end
    for name, kind, shape, start, end in plan:
        entries[name] = {"dtype": DTYPE_NAMES[kind], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode()
    # trailing spaces are allowed by the format; they put the first tensor on an aligned byte of the file
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    lead = len(header).to_bytes(8, "little") + header
    return lead, [TensorSpan(n, k, s, len(lead) + start, len(lead) + end) for n, k, s, start, end in plan]
