"""Tensors of torch that lie in a mapped safetensors file. Knows nothing of models."""

import mmap
import warnings
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from data_plane.weights.safetensors_header import TensorSpan, map_file

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the format's names."""


def map_tensors(path: Path, spans: Sequence[TensorSpan]) -> dict[str, torch.Tensor]:
    """Tensors that share one read-only mapping of the file: no copy, and never to be written to (that would fault)."""
    return view_tensors(map_file(path, spans), spans)


def view_tensors(mapping: mmap.mmap, spans: Sequence[TensorSpan]) -> dict[str, torch.Tensor]:
    """The tensors of `spans` as views of `mapping`, which they keep alive."""
    with warnings.catch_warnings():
        # torch warns that the buffer is read-only, which is what we want of weights shared between replicas
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return {span.name: _view(mapping, span) for span in spans}


def _view(mapping: mmap.mmap, span: TensorSpan) -> torch.Tensor:
    dtype, count = DTYPES[span.dtype], prod(span.shape)
    if count == 0:
        return torch.empty(span.shape, dtype=dtype)
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=span.start).view(span.shape)
