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

from data_plane.weights.encode import Contents, plain_contents
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
    verify_artifact,
)
from data_plane.weights.safetensors_file import DTYPES as STORED_DTYPES
from data_plane.weights.safetensors_file import view_tensors
from data_plane.weights.safetensors_header import PADDING_PREFIX, TensorSpan, plan_header
from data_plane.weights.scratch import scratch_folder
from data_plane.weights.source_model import TokenizerFiles

CREATED_BY = "ebb 0.1.0"


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


def open_artifact(path: Path) -> Artifact:
    """Opens and checks an artifact without reading its tensors; raises ArtifactError on anything that does not fit."""
    mapped = open_mapped(path)
    tensors = view_tensors(mapped.data, list(mapped.spans.values()))
    return Artifact(path, mapped.config.as_dict(), mapped.manifest, tensors)


@dataclass(frozen=True, slots=True)
class Draft:
    """An artifact that is written, but not yet where anybody looks for it."""

    folder: Path
    digest: str
    manifest: dict[str, Any]


def write_artifact(
    root: Path,
    config: ModelConfig,
    tokenizer: TokenizerFiles,
    read_tensor: Callable[[str], torch.Tensor],
    origin: Origin,
    on_convert: Callable[[int, int], None] = lambda done, total: None,
    on_written: Callable[[int], None] = lambda total: None,
) -> Path:
    """Writes one plain artifact under `root` and returns its folder, which appears whole or not at all.

    `read_tensor` is called once per tensor of `tensor_layout(config)`, in order. If an artifact with the same values
    is there already, that one is returned.
    """
    with scratch_folder(root) as scratch:
        contents = plain_contents(config, read_tensor)
        return publish(root, draft(scratch / "artifact", contents, tokenizer, origin, on_convert, on_written), {})


def draft(
    folder: Path,
    contents: Contents,
    tokenizer: TokenizerFiles,
    origin: Origin,
    on_convert: Callable[[int, int], None] = lambda done, total: None,
    on_written: Callable[[int], None] = lambda total: None,
) -> Draft:
    """Writes an artifact into the new `folder`, with no more than one tensor of the model in memory at a time.

    `on_convert` is given bytes done and bytes in all, `on_written` the bytes that are safely on the disk.
    """
    folder.mkdir()
    config = contents.config
    digests = {
        CONFIG: _write_bytes(folder / CONFIG, _json(config.as_dict())),
        TOKENIZER: _write_bytes(folder / TOKENIZER, tokenizer.tokenizer),
        TOKENIZER_CONFIG: _write_bytes(folder / TOKENIZER_CONFIG, _json(tokenizer.config)),
        TENSORS: _write_tensors(folder / TENSORS, contents, on_convert),
    }
    on_written((folder / TENSORS).stat().st_size)
    digest = combine_digests(digests)
    manifest = {
        "digest": digest,
        "source": origin.source,
        "source_sha256": origin.sha256,
        "source_bytes": origin.size_bytes,
        "licence": origin.licence,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "tensors": sum(len(parts) for parts in contents.specs.values()),
        "bytes": (folder / TENSORS).stat().st_size,
        "parameters": sum(prod(shape) for shape in tensor_layout(config).values()),
        "created_by": CREATED_BY,
    }
    _write_bytes(folder / MANIFEST, _json(manifest))
    open_mapped(folder)
    return Draft(folder, digest, manifest)


def publish(root: Path, made: Draft, measured: Mapping[str, Any]) -> Path:
    """Gives a draft its place under `root`, on the same file system; `measured` joins its manifest."""
    if measured:
        (made.folder / MANIFEST).unlink()
        _write_bytes(made.folder / MANIFEST, _json({**made.manifest, **measured}))
    with scratch_folder(root) as scratch:
        return _publish(made.folder, artifact_folder(root, made.digest), discard=scratch / "damaged")


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


def _write_tensors(path: Path, contents: Contents, on_convert: Callable[[int, int], None]) -> str:
    owner = {part: name for name, parts in contents.specs.items() for part in parts}
    lead, spans = plan_header({part: spec for parts in contents.specs.values() for part, spec in parts.items()})
    total = spans[-1].end
    hasher = hashlib.sha256(lead)
    made: dict[str, torch.Tensor] = {}
    with path.open("xb") as file:
        file.write(lead)
        for span in spans:
            if span.name.startswith(PADDING_PREFIX):
                raw = memoryview(bytes(span.end - span.start))
            else:
                if span.name not in made:
                    made = dict(contents.read(owner[span.name]))
                raw = _tensor_bytes(span, made.pop(span.name))
            hasher.update(raw)
            file.write(raw)
            on_convert(span.end, total)
        _settle(file)
    return hasher.hexdigest()


def _tensor_bytes(span: TensorSpan, tensor: torch.Tensor) -> memoryview:
    if tuple(tensor.shape) != span.shape:
        raise ArtifactError(
            f"tensor {span.name} has the shape {list(tensor.shape)} where the config asks {list(span.shape)}; "
            "the source's config and tensors do not belong together"
        )
    return tensor.to(STORED_DTYPES[span.dtype]).contiguous().view(torch.uint8).numpy().data.cast("B")


def _publish(folder: Path, final: Path, discard: Path) -> Path:
    """Renames `folder` to `final`, unless a sound artifact is there: equal digests are equal values. What is there is
    read whole for that: one flipped byte is reason enough to make an artifact again."""
    _sync_folder(folder)
    if final.exists():
        with suppress(ArtifactError, OSError):  # a damaged one is replaced below; it is not what its name says
            verify_artifact(final)
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
