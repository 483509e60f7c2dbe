"""Artifacts with torch: opening one as tensors, and writing one. Knows nothing of where weights come from, nor of what
a model computes with them.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig, tensor_layout
from data_plane.weights.mapped import (
    CONFIG,
    MANIFEST,
    TENSORS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    artifact_folder,
    combine_digests,
    open_mapped,
)
from data_plane.weights.safetensors_file import DTYPES as STORED_DTYPES
from data_plane.weights.safetensors_file import view_tensors
from data_plane.weights.safetensors_header import PADDING_PREFIX, TensorSpan, TensorSpec, plan_header
from data_plane.weights.scratch import scratch_folder
from data_plane.weights.stored import PLAIN_DTYPES

CREATED_BY = "ebb 0.1.0"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Artifact:
    """An open artifact. `tensors` are memory-mapped: reading is free until touched, writing faults."""

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an artifact's values came from, for its manifest. It does not enter the digest."""

    source: str
    sha256: str
    size_bytes: int
    licence: str | None


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """`tokenizer`: tokenizer.json as bytes. `config`: what tokenizer_config.json says."""

    tokenizer: bytes
    config: Mapping[str, Any]


def open_artifact(path: Path) -> Artifact:
    """Opens and checks an artifact without reading its tensors; raises ArtifactError on anything that does not fit."""
    mapped = open_mapped(path)
    tensors = view_tensors(mapped.data, list(mapped.spans.values()))
    return Artifact(path, mapped.config.as_dict(), mapped.manifest, tensors)


def write_artifact(
    root: Path,
    config: ModelConfig,
    tokenizer: TokenizerFiles,
    read_tensor: Callable[[str], torch.Tensor],
    origin: Origin,
    on_convert: Callable[[int, int], None] = lambda done, total: None,
    on_written: Callable[[int], None] = lambda total: None,
) -> Path:
    """Writes one artifact under `root` and returns its folder, which appears whole or not at all.

    `read_tensor` is called once per tensor of `tensor_layout(config)`, in order, so that no more than one
    tensor is in memory at a time. `on_convert` is given bytes done and bytes in all, `on_written` the bytes that
    are safely on the disk. If an artifact with the same
    values is there already, that one is returned.
    """
    with scratch_folder(root) as scratch:
        folder = scratch / "artifact"
        folder.mkdir()
        digests = {
            CONFIG: _write_bytes(folder / CONFIG, _json(config.as_dict())),
            TOKENIZER: _write_bytes(folder / TOKENIZER, tokenizer.tokenizer),
            TOKENIZER_CONFIG: _write_bytes(folder / TOKENIZER_CONFIG, _json(tokenizer.config)),
            TENSORS: _write_tensors(folder / TENSORS, config, read_tensor, on_convert),
        }
        on_written((folder / TENSORS).stat().st_size)
        digest = combine_digests(digests)
        layout = tensor_layout(config)
        manifest = {
            "digest": digest,
            "source": origin.source,
            "source_sha256": origin.sha256,
            "source_bytes": origin.size_bytes,
            "licence": origin.licence,
            "dtype": config.dtype,
            "tensors": len(layout),
            "bytes": (folder / TENSORS).stat().st_size,
            "parameters": sum(prod(shape) for shape in layout.values()),
            "created_by": CREATED_BY,
        }
        _write_bytes(folder / MANIFEST, _json(manifest))
        open_artifact(folder)
        return _publish(folder, artifact_folder(root, digest), discard=scratch / "damaged")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _write_bytes(path: Path, raw: bytes) -> str:
    with path.open("xb") as file:
        file.write(raw)
        _settle(file)
    return hashlib.sha256(raw).hexdigest()


def _settle(file: BinaryIO) -> None:
    """On disk, and nobody's to change: processes map these files for as long as they live."""
    file.flush()
    os.fsync(file.fileno())
    os.fchmod(file.fileno(), 0o444)


def _write_tensors(
    path: Path, config: ModelConfig, read_tensor: Callable[[str], torch.Tensor], on_convert: Callable[[int, int], None]
) -> str:
    specs = {name: TensorSpec(PLAIN_DTYPES[config.dtype], shape) for name, shape in tensor_layout(config).items()}
    lead, spans = plan_header(specs)
    total = spans[-1].end
    hasher = hashlib.sha256(lead)
    with path.open("xb") as file:
        file.write(lead)
        for span in spans:
            raw = _tensor_bytes(span, read_tensor)
            hasher.update(raw)
            file.write(raw)
            on_convert(span.end, total)
        _settle(file)
    return hasher.hexdigest()


def _tensor_bytes(span: TensorSpan, read_tensor: Callable[[str], torch.Tensor]) -> memoryview:
    if span.name.startswith(PADDING_PREFIX):
        return memoryview(bytes(span.end - span.start))
    tensor = read_tensor(span.name)
    if tuple(tensor.shape) != span.shape:
        raise ArtifactError(
            f"tensor {span.name} has the shape {list(tensor.shape)} where the config asks {list(span.shape)}; "
            "the source's config and tensors do not belong together"
        )
    return tensor.to(STORED_DTYPES[span.dtype]).contiguous().view(torch.uint8).numpy().data.cast("B")


def _publish(folder: Path, final: Path, discard: Path) -> Path:
    """Renames `folder` to `final`, unless a sound artifact is there: equal digests are equal values."""
    _sync_folder(folder)
    if final.exists():
        with suppress(ArtifactError):  # a damaged one is replaced below; it was never what its name says
            open_artifact(final)
            return final
        final.rename(discard)
    try:
        folder.rename(final)
    except OSError as error:
        # another import of the same values was quicker
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        open_artifact(final)
    _sync_folder(final.parent)
    return final


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
