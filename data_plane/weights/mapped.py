"""Artifacts, opened: checked headers and one read-only mapping. Knows nothing of torch, so that a start without torch
can use it, nor of what a model computes.

An artifact is a folder that holds one model made ready to serve, named by the digest of its values.
"""

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_plane.weights.bounded_json import read_bounded, read_object
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig, parse_config
from data_plane.weights.safetensors_header import ALIGNMENT, PADDING_PREFIX, TensorSpan, map_file, read_header
from data_plane.weights.stored import check_stored

JSON_LIMIT = 1 << 20
TOKENIZER_LIMIT = 256 << 20
CONFIG, TENSORS, MANIFEST = "config.json", "model.safetensors", "manifest.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class MappedArtifact:
    """An open artifact. `data` is the whole file of tensors, mapped: reading is free until touched, writing faults.

    `spans`: each stored tensor's dtype (as safetensors names it), shape and byte offsets in `data`, all multiples of
    64. `forms`: for each tensor of the model, how it is stored: plain, int8, int4 or fp8 (see `weights.stored`).
    """

    path: Path
    config: ModelConfig
    manifest: dict[str, Any]
    spans: dict[str, TensorSpan]
    forms: dict[str, str]
    data: mmap.mmap

    def view(self, name: str) -> memoryview:
        """The bytes of the stored tensor `name`, in place."""
        span = self.spans[name]
        return memoryview(self.data)[span.start : span.end]


def artifact_folder(root: Path, digest: str) -> Path:
    """`digest` is `sha256:` and 64 hexadecimal digits; anything else never becomes a path."""
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ArtifactError(f"{digest[:100]!r} is not a digest; one reads sha256: and 64 hexadecimal digits")
    return root / f"sha256-{value}"


def open_mapped(path: Path) -> MappedArtifact:
    """Opens and checks an artifact without reading its tensors; raises ArtifactError on anything that does not fit."""
    if not path.is_dir():
        raise ArtifactError(f"there is no artifact at {path}; import the model again")
    try:
        config = parse_config(read_object(path / CONFIG, max_bytes=JSON_LIMIT))
        manifest = read_object(path / MANIFEST, max_bytes=JSON_LIMIT)
        read_object(path / TOKENIZER_CONFIG, max_bytes=TOKENIZER_LIMIT)
        if (path / TOKENIZER).is_symlink() or not (path / TOKENIZER).is_file():
            raise ArtifactError("tokenizer.json is missing; import the model again")
        spans = {s.name: s for s in read_header(path / TENSORS) if not s.name.startswith(PADDING_PREFIX)}
        forms = check_stored(config, spans)
        for span in spans.values():
            if span.start % ALIGNMENT:
                raise ArtifactError(
                    f"tensor {span.name} starts at byte {span.start}, which is no multiple of {ALIGNMENT}"
                )
        return MappedArtifact(path, config, manifest, spans, forms, map_file(path / TENSORS, list(spans.values())))
    except OSError as error:
        raise ArtifactError(f"the artifact {path} cannot be read: {error}; check its permissions") from error
    except ArtifactError as error:
        raise ArtifactError(f"the artifact {path.name} is damaged: {error}") from error


def verify_artifact(path: Path) -> None:
    """Reads every byte and compares with the digest in the folder's name; raises ArtifactError if they differ."""
    open_mapped(path)
    digests: dict[str, str] = {}
    for name in (CONFIG, TOKENIZER, TOKENIZER_CONFIG, TENSORS):
        with (path / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    digest = combine_digests(digests)
    if path.name != digest.replace(":", "-"):
        raise ArtifactError(f"the values in {path.name} have the digest {digest}; delete the folder and import again")


def combine_digests(digests: Mapping[str, str]) -> str:
    """The artifact's digest, from the SHA-256 of each of its files by name."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def read_tokenizer_files(path: Path) -> tuple[bytes, dict[str, Any]]:
    """tokenizer.json as bytes, and tokenizer_config.json, of an artifact."""
    config = read_object(path / TOKENIZER_CONFIG, max_bytes=TOKENIZER_LIMIT)
    return read_bounded(path / TOKENIZER, max_bytes=TOKENIZER_LIMIT), config
