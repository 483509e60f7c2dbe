"""Artifacts: folders that hold one model made ready to serve, named by the digest of their values.

Knows nothing of where weights come from, nor of what a model computes with them.
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

from data_plane.weights.bounded_json import read_bounded, read_object
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig, parse_config, tensor_layout
from data_plane.weights.safetensors_file import (
    ALIGNMENT,
    PADDING_PREFIX,
    TensorSpan,
    map_tensors,
    plan_header,
    read_header,
)
from data_plane.weights.scratch import scratch_folder

CREATED_BY = "ebb 0.1.0"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_JSON_LIMIT = 1 << 20
_TOKENIZER_LIMIT = 256 << 20
_CONFIG, _TENSORS, _MANIFEST = "config.json", "model.safetensors", "manifest.json"
_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


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


def artifact_folder(root: Path, digest: str) -> Path:
    """`digest` is `sha256:` and 64 hexadecimal digits; anything else never becomes a path."""
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ArtifactError(f"{digest[:100]!r} is not a digest; one reads sha256: and 64 hexadecimal digits")
    return root / f"sha256-{value}"


def open_artifact(path: Path) -> Artifact:
    """Opens and checks an artifact without reading its tensors; raises ArtifactError on anything that does not fit."""
    if not path.is_dir():
        raise ArtifactError(f"there is no artifact at {path}; import the model again")
    try:
        config = parse_config(read_object(path / _CONFIG, max_bytes=_JSON_LIMIT))
        manifest = read_object(path / _MANIFEST, max_bytes=_JSON_LIMIT)
        read_object(path / _TOKENIZER_CONFIG, max_bytes=_TOKENIZER_LIMIT)
        if (path / _TOKENIZER).is_symlink() or not (path / _TOKENIZER).is_file():
            raise ArtifactError("tokenizer.json is missing; import the model again")
        spans = [s for s in read_header(path / _TENSORS) if not s.name.startswith(PADDING_PREFIX)]
        _check_spans(config, spans)
        return Artifact(path, config.as_dict(), manifest, map_tensors(path / _TENSORS, spans))
    except OSError as error:
        raise ArtifactError(f"the artifact {path} cannot be read: {error}; check its permissions") from error
    except ArtifactError as error:
        raise ArtifactError(f"the artifact {path.name} is damaged: {error}") from error


def _check_spans(config: ModelConfig, spans: list[TensorSpan]) -> None:
    layout = tensor_layout(config)
    found = {span.name: span for span in spans}
    if different := sorted(set(layout) ^ set(found)):
        raise ArtifactError(f"it lacks, or has beyond its config, the tensors {', '.join(different[:5])[:300]}")
    for name, shape in layout.items():
        span = found[name]
        if span.shape != shape or span.dtype != DTYPES[config.dtype]:
            raise ArtifactError(
                f"tensor {name} is {span.dtype} {list(span.shape)}, but its config asks {config.dtype} {list(shape)}"
            )
        if span.start % ALIGNMENT:
            raise ArtifactError(f"tensor {name} starts at byte {span.start}, which is no multiple of {ALIGNMENT}")


def verify_artifact(path: Path) -> None:
    """Reads every byte and compares with the digest in the folder's name; raises ArtifactError if they differ."""
    open_artifact(path)
    digests: dict[str, str] = {}
    for name in (_CONFIG, _TOKENIZER, _TOKENIZER_CONFIG, _TENSORS):
        with (path / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    digest = _combine(digests)
    if path.name != digest.replace(":", "-"):
        raise ArtifactError(f"the values in {path.name} have the digest {digest}; delete the folder and import again")


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
            _CONFIG: _write_bytes(folder / _CONFIG, _json(config.as_dict())),
            _TOKENIZER: _write_bytes(folder / _TOKENIZER, tokenizer.tokenizer),
            _TOKENIZER_CONFIG: _write_bytes(folder / _TOKENIZER_CONFIG, _json(tokenizer.config)),
            _TENSORS: _write_tensors(folder / _TENSORS, config, read_tensor, on_convert),
        }
        on_written((folder / _TENSORS).stat().st_size)
        digest = _combine(digests)
        layout = tensor_layout(config)
        manifest = {
            "digest": digest,
            "source": origin.source,
            "source_sha256": origin.sha256,
            "source_bytes": origin.size_bytes,
            "licence": origin.licence,
            "dtype": config.dtype,
            "tensors": len(layout),
            "bytes": (folder / _TENSORS).stat().st_size,
            "parameters": sum(prod(shape) for shape in layout.values()),
            "created_by": CREATED_BY,
        }
        _write_bytes(folder / _MANIFEST, _json(manifest))
        open_artifact(folder)
        return _publish(folder, artifact_folder(root, digest), discard=scratch / "damaged")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _combine(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


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
    dtype = DTYPES[config.dtype]
    lead, spans = plan_header(tensor_layout(config), dtype)
    total = spans[-1].end
    hasher = hashlib.sha256(lead)
    with path.open("xb") as file:
        file.write(lead)
        for span in spans:
            raw = _tensor_bytes(span, dtype, read_tensor)
            hasher.update(raw)
            file.write(raw)
            on_convert(span.end, total)
        _settle(file)
    return hasher.hexdigest()


def _tensor_bytes(span: TensorSpan, dtype: torch.dtype, read_tensor: Callable[[str], torch.Tensor]) -> memoryview:
    if span.name.startswith(PADDING_PREFIX):
        return memoryview(bytes(span.end - span.start))
    tensor = read_tensor(span.name)
    if tuple(tensor.shape) != span.shape:
        raise ArtifactError(
            f"tensor {span.name} has the shape {list(tensor.shape)} where the config asks {list(span.shape)}; "
            "the source's config and tensors do not belong together"
        )
    return tensor.to(dtype).contiguous().view(torch.uint8).numpy().data.cast("B")


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


def read_tokenizer_files(path: Path) -> tuple[bytes, dict[str, Any]]:
    """tokenizer.json as bytes, and tokenizer_config.json, of an artifact."""
    config = read_object(path / _TOKENIZER_CONFIG, max_bytes=_TOKENIZER_LIMIT)
    return read_bounded(path / _TOKENIZER, max_bytes=_TOKENIZER_LIMIT), config
