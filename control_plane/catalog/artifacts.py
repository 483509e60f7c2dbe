"""The artifacts of models: ordered, listed, chosen among, and kept once they are made. Never commits. Knows nothing of
how they are made, nor of who serves them."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog import quantization
from control_plane.catalog.quantization import PLAIN, Candidate, word
from control_plane.catalog.tables import ArtifactTable, ModelTable
from control_plane.db.bells import ring
from control_plane.db.outbox import JobTable, enqueue
from control_plane.errors import Conflict, Invalid
from control_plane.events.service import record
from data_plane.wire.jobs import ImportResult

QUANTIZE = "quantize_model"


class Unusable(Exception):
    """What an import made cannot be an artifact of the model it was made for; the message says why."""


def stored_name(quant: str, param: str = "quant") -> str:
    """The stored name of a word that people wrote. Raises Invalid."""
    if not quantization.is_word(quant):
        raise Invalid(quantization.unknown(quant), param)
    return quantization.stored_name(quant)


async def artifacts_of(session: AsyncSession, model_ids: Sequence[UUID]) -> dict[UUID, list[ArtifactTable]]:
    """The artifacts by model, the oldest first."""
    found: dict[UUID, list[ArtifactTable]] = {model_id: [] for model_id in model_ids}
    query = select(ArtifactTable).where(ArtifactTable.model_id.in_(model_ids))
    for row in (await session.execute(query.order_by(ArtifactTable.created_at, ArtifactTable.id))).scalars():
        found[row.model_id].append(row)
    return found


async def order(
    session: AsyncSession, tenant_id: UUID, model: ModelTable, quant: str, *, force: bool = False
) -> JobTable:
    """The job that makes another artifact of a ready model; the open one where it is ordered twice. `force`: whatever
    the quality gate says, and also where there is one already. Raises Invalid and Conflict."""
    stored = stored_name(quant)
    there = next((a for a in (await artifacts_of(session, [model.id]))[model.id] if a.quantization == stored), None)
    if there is not None and not force:
        raise Conflict(
            f"Model '{model.name}' has its {quant} artifact already ({there.digest[:19]}…). To make it again, ask with "
            f"force: 'ebb models quantize {model.name} --quant {quant} --force'.",
            code="already_exists",
            param="quant",
        )
    under_way = await _under_way(session, model.id, stored)
    if under_way is not None:
        if force and not under_way.payload.get("force"):
            raise Conflict(
                f"Job {under_way.id} is making the {quant} artifact of '{model.name}' without force just now. Ask "
                "again once it has ended.",
                code="being_made",
                param="quant",
            )
        return under_way
    payload = {"source": model.source, "model": model.name, "quantization": stored, "force": force}
    job = await enqueue(session, tenant_id, kind=QUANTIZE, subject=model.id, name=model.name, payload=payload)
    reason = f"A {quant} artifact is made from {model.source}."
    await record(session, tenant_id, "model", model.name, "quantizing", reason, {"job": str(job.id), "quant": quant})
    return job


async def made(session: AsyncSession, model_id: UUID, result: ImportResult) -> None:
    """Another artifact of a model is ready. Raises Unusable where it is not made from the same weights."""
    model = await session.get(ModelTable, model_id, with_for_update=True)
    if model is None:  # removed meanwhile: the artifact stays in its folder, named by its digest
        return
    if model.source_sha256 != result.source_sha256:
        raise Unusable(
            f"{model.source} is not what model '{model.name}' was imported from: its SHA-256 is now "
            f"{result.source_sha256}, and was {model.source_sha256}. Add it under another name with 'ebb models add'."
        )
    await keep(session, model_id, result)
    quant = word(result.quantization)
    data = {"artifact": result.artifact, "quant": quant, "quality": result.quality, "speed": result.speed}
    await record(session, model.tenant_id, "model", model.name, "quantized", f"Its {quant} artifact is ready.", data)
    ring(session, "endpoints")


async def keep(session: AsyncSession, model_id: UUID, result: ImportResult) -> None:
    """Writes the artifact's row; it takes the place of one of the same quantization."""
    facts: dict[str, Any] = {
        "digest": result.artifact,
        "bytes": result.artifact_bytes,
        "dtype": result.dtype,
        "kv_bytes_per_token": result.kv_bytes_per_token,
        "quality": result.quality,
        "speed": result.speed,
    }
    new = insert(ArtifactTable).values(model_id=model_id, quantization=result.quantization, **facts)
    await session.execute(new.on_conflict_do_update(index_elements=["model_id", "quantization"], set_=facts))


async def speed_of(session: AsyncSession, digest: str) -> dict[str, float]:
    """What the artifact was measured to do when it was made, tokens a second by case; empty where it was not."""
    query = select(ArtifactTable.speed).where(ArtifactTable.digest == digest, ArtifactTable.speed.is_not(None)).limit(1)
    return (await session.execute(query)).scalar_one_or_none() or {}


def primary(rows: Sequence[ArtifactTable]) -> ArtifactTable | None:
    """The one that stands for the model where only one is told: the plain one, else the oldest."""
    return next((row for row in rows if row.quantization == PLAIN), next(iter(rows), None))


def candidate(row: ArtifactTable) -> Candidate:
    """What choosing needs of it."""
    return Candidate(row.quantization, row.digest, row.quality or {}, row.speed or {})


def missing(model: str, quant: str, rows: Sequence[ArtifactTable]) -> Conflict:
    """409: nobody has made this one yet; the sentence names the calls that do."""
    has = quantization.words(row.quantization for row in rows) or "none"
    return Conflict(
        f"Model '{model}' has no {quant} artifact yet (it has: {has}). Make it with POST "
        f'/api/v1/models/{model}/artifacts {{"quant": "{quant}"}} or \'ebb models quantize {model} --quant {quant} '
        "--wait', then deploy again.",
        code="artifact_missing",
        param="quant",
    )


async def _under_way(session: AsyncSession, model_id: UUID, stored: str) -> JobTable | None:
    query = select(JobTable).where(
        JobTable.subject == model_id, JobTable.kind == QUANTIZE, JobTable.status.in_(("queued", "running"))
    )
    jobs = (await session.execute(query)).scalars()
    return next((job for job in jobs if job.payload.get("quantization") == stored), None)
