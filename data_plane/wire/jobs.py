"""What an import prints, one JSON line each, while it turns a source into an artifact. No I/O."""

import msgspec


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """`stage` is download, verify, parse, convert or write; `done` and `total` are bytes (total 0: not known)."""

    stage: str
    done: int = 0
    total: int = 0


class ImportFailure(msgspec.Struct, frozen=True, tag="failure"):
    """Why the import ended. `fatal`: trying again will not help (the file is bad, the source does not exist)."""

    message: str
    fatal: bool


class ImportResult(msgspec.Struct, frozen=True, tag="result"):
    """What the catalog records of a model."""

    artifact: str
    """Digest, `sha256:…`: also the name of the artifact's folder, with `-` for `:`."""
    architecture: str
    parameters: int
    context_length: int
    vocab_size: int
    chat_template: str | None
    licence: str | None
    source_bytes: int
    source_sha256: str
    artifact_bytes: int
    dtype: str
    kv_bytes_per_token: int
    shape: dict[str, int]
    """Layers, hidden size, heads: what memory estimates are made from."""
    quantization: str = "none"
    quality: dict[str, float] | None = None
    speed: dict[str, float] | None = None


ImportLine = Progress | ImportFailure | ImportResult
