"""What an import prints, one JSON line each, while it turns a source into an artifact. No I/O."""

import msgspec


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """`stage` is download, verify, parse, convert, write or evaluate; `done` and `total` are bytes, or tokens where it
    evaluates (total 0: not known)."""

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
    """none, int8, int4 or fp8: never auto."""
    quality: dict[str, float] | None = None
    """By the unquantized weights: perplexity_ratio, mean_kl, greedy_agreement, perplexity, reference_perplexity."""
    speed: dict[str, float] | None = None
    """Tokens a second where it was measured: prefill_tps, decode_1_tps, decode_8_tps, and their mean, score."""


ImportLine = Progress | ImportFailure | ImportResult
