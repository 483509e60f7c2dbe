"""A bounded reader of GGUF (versions 2 and 3, little-endian). Knows nothing of what the metadata means.

Every count, length and offset is compared with the bytes that are really there before anything is allocated by it.
"""

import mmap
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import torch

from data_plane.weights.dequantize import QUANTIZATIONS, Quantization, dequantize, four_bit_blocks
from data_plane.weights.errors import GgufError
from data_plane.weights.quantize import Int4Matrix

MAX_ENTRIES = 1 << 16
MAX_NAME_BYTES = 256
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY = 1 << 24
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",  # a boolean
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_BOOL = 7
_MIN_ENTRY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

Value = int | float | bool | str | list[str] | np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` is in torch's order (rows first); `start` and `end` are byte offsets in the file."""

    name: str
    kind: Quantization
    shape: tuple[int, ...]
    start: int
    end: int


class _Cursor:
    """Reads forward; refuses to pass the end."""

    _U32, _U64 = Struct("<I"), Struct("<Q")

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.size, self.position = data, len(data), 0

    def take(self, count: int, what: str) -> int:
        """The position of the next `count` bytes, which are then passed."""
        start = self.position
        if count > self.size - start:
            raise GgufError(
                f"the GGUF file ends early: {what} needs {count} bytes at byte {start}, but the file has {self.size}; "
                "get it again"
            )
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        return self._U32.unpack_from(self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return self._U64.unpack_from(self.data, self.take(8, what))[0]

    def string(self, what: str, most: int = MAX_STRING_BYTES) -> str:
        length = self.u64(what)
        if length > most:
            raise GgufError(f"{what} is said to have {length} bytes, more than the {most} allowed: the file is damaged")
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise GgufError(f"{what} at byte {start} is not UTF-8 ({error.reason}); the file is damaged") from None

    def check_count(self, count: int, most: int, least_bytes: int, what: str) -> int:
        """`count` things of at least `least_bytes` each must fit into what is left."""
        left = (self.size - self.position) // least_bytes
        if count > min(most, left):
            raise GgufError(
                f"the file announces {count} {what}; at most {most} are allowed and the {self.size} bytes of the file "
                f"leave room for {left}: it is damaged"
            )
        return count


class GgufFile:
    """An open GGUF: `metadata` by key and `tensors` by name. The data stay in the file until `read` is called."""

    def __init__(self, path: Path) -> None:
        """Raises GgufError on anything that contradicts itself, and OSError if the file cannot be opened."""
        if not path.is_file():
            raise GgufError(f"{path} is not a file; name a GGUF file")
        if path.stat().st_size < 24:
            raise GgufError(f"{path.name} has {path.stat().st_size} bytes; the smallest GGUF has 24")
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(self._data)
        n_tensors, n_entries = _read_lead(cursor)
        self.metadata = _read_metadata(cursor, n_entries)
        self.tensors = _read_tensors(cursor, n_tensors, _alignment(self.metadata))

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor `name`, dequantized and rounded to `dtype`; raises GgufError if there is none."""
        tensor = self._find(name)
        return dequantize(tensor.kind, self._raw(tensor), tensor.shape, dtype)

    def read_int4(self, name: str) -> Int4Matrix | None:
        """The matrix `name` by its own 4-bit blocks, nothing rounded again; None where it has none of that kind."""
        tensor = self._find(name)
        found = four_bit_blocks(tensor.kind, self._raw(tensor), tensor.shape) if len(tensor.shape) == 2 else None
        return None if found is None else Int4Matrix(*found)

    def _find(self, name: str) -> GgufTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise GgufError(f"the file has no tensor {name!r}, which its architecture needs; get a complete file")
        return tensor

    def _raw(self, tensor: GgufTensor) -> memoryview:
        return memoryview(self._data)[tensor.start : tensor.end]


def _read_lead(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.data[cursor.take(4, "the magic") : 4]
    if magic != b"GGUF":
        raise GgufError(f"the file starts with {magic!r}, not with b'GGUF': it is not a GGUF file")
    version = cursor.u32("the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        hint = "it is big-endian, which is not read" if swapped in (2, 3) else "versions 2 and 3 are read"
        raise GgufError(f"the GGUF version is {version}; {hint}")
    n_tensors = cursor.u64("the number of tensors")
    n_entries = cursor.u64("the number of metadata entries")
    cursor.check_count(n_tensors, MAX_ENTRIES, _MIN_TENSOR_BYTES, "tensors")
    cursor.check_count(n_entries, MAX_ENTRIES, _MIN_ENTRY_BYTES, "metadata entries")
    return n_tensors, n_entries


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_NAME_BYTES)
        if key in metadata:
            raise GgufError(f"the metadata has the key {key!r} twice; the file is damaged")
        metadata[key] = _read_value(cursor, cursor.u32(f"the type of {key!r}"), key)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.string(f"the value of {key!r}")
    if kind == _ARRAY:
        return _read_array(cursor, key)
    value = _read_numbers(cursor, kind, 1, key)[0].item()
    return bool(value) if kind == _BOOL else value


def _read_numbers(cursor: _Cursor, kind: int, count: int, key: str) -> np.ndarray[Any, Any]:
    if kind not in _SCALARS:
        raise GgufError(f"the metadata value {key!r} has the unknown type {kind}; the file is damaged")
    dtype = np.dtype(_SCALARS[kind])
    start = cursor.take(count * dtype.itemsize, f"the value of {key!r}")
    # a copy: what is kept must not hang on the mapping
    return np.frombuffer(cursor.data, dtype=dtype, count=count, offset=start).copy()


def _read_array(cursor: _Cursor, key: str) -> Value:
    kind, count = cursor.u32(f"the item type of {key!r}"), cursor.u64(f"the length of {key!r}")
    if kind == _ARRAY:
        raise GgufError(f"the metadata value {key!r} is an array of arrays, which is not read")
    least = 8 if kind == _STRING else 1
    cursor.check_count(count, MAX_ARRAY, least, f"items of {key!r}")
    if kind == _STRING:
        return [cursor.string(f"an item of {key!r}") for _ in range(count)]
    return _read_numbers(cursor, kind, count, key)


def _alignment(metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {str(alignment)[:50]}, but must be a power of two up to {MAX_ALIGNMENT}")
    return alignment


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    described: list[tuple[str, tuple[int, ...], Quantization, int]] = []
    for _ in range(count):
        described.append(_read_tensor(cursor))
    data_start = cursor.position + -cursor.position % alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in described:
        if name in tensors:
            raise GgufError(f"the file has the tensor {name!r} twice; it is damaged")
        if offset % alignment:
            raise GgufError(f"tensor {name!r} starts at offset {offset}, which is no multiple of {alignment}")
        start = data_start + offset
        end = start + prod(shape) // kind.values * kind.block_bytes
        if end > cursor.size:
            raise GgufError(f"tensor {name!r} would end at byte {end}, but the file has {cursor.size}; get it again")
        tensors[name] = GgufTensor(name, kind, shape, start, end)
    _refuse_overlap(list(tensors.values()))
    return tensors


def _read_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], Quantization, int]:
    name = cursor.string("a tensor's name", MAX_NAME_BYTES)
    n_dims = cursor.u32(f"the number of dimensions of {name!r}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise GgufError(f"tensor {name!r} has {n_dims} dimensions; 1 to {MAX_DIMS} are allowed")
    # GGUF names the fastest-changing dimension first, torch last
    shape = tuple(cursor.u64(f"a dimension of {name!r}") for _ in range(n_dims))[::-1]
    number = cursor.u32(f"the type of {name!r}")
    kind = QUANTIZATIONS.get(number)
    if kind is None:
        known = ", ".join(sorted(k.name for k in QUANTIZATIONS.values()))
        raise GgufError(f"tensor {name!r} has the GGUF type {number}, which is not read; these are: {known}")
    if min(shape) < 1 or shape[-1] % kind.values:
        raise GgufError(f"tensor {name!r} has the shape {list(shape)}, whose rows are not whole {kind.name} blocks")
    return name, shape, kind, cursor.u64(f"the offset of {name!r}")


def _refuse_overlap(tensors: list[GgufTensor]) -> None:
    ordered = sorted(tensors, key=lambda tensor: tensor.start)
    for before, after in pairwise(ordered):
        if before.end > after.start:
            raise GgufError(f"tensors {before.name!r} and {after.name!r} overlap at byte {after.start}")
