"""Adds, finds and removes models, and records what their imports found. Never commits. Knows nothing of endpoints:
that one still uses a model is what the database says when the model is to go. Artifacts: see artifacts.py."""

from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog import artifacts, quantization
from control_plane.catalog.sources import check_source
from control_plane.catalog.tables import ModelTable
from control_plane.db.bells import ring
from control_plane.db.outbox import JobTable, enqueue
from control_plane.errors import AlreadyExists, Conflict, InUse, Invalid, Missing
from control_plane.events.service import record
from data_plane.wire.jobs import ImportResult
from data_plane.wire.names import NAME_RULE, is_name

IMPORT = "import_model"
_FACTS = (
    *("architecture", "parameters", "context_length", "vocab_size", "chat_template", "licence"),
    *("source_bytes", "source_sha256", "shape"),
)


async def add_model(
    session: AsyncSession, tenant_id: UUID, name: str, source: str, quant: str = "bf16", *, force: bool = False
) -> tuple[ModelTable, JobTable]:
    """A model in status importing and its job. Takes the place of one that failed. `force`: whatever the quality gate
    says of `quant`. Raises Invalid, AlreadyExists."""
    if not is_name(name):
        raise Invalid(f"A model's name has {NAME_RULE}, and no '..'.", "name")
    check_source(source)
    payload = {"source": source, "model": name, "quantization": artifacts.stored_name(quant), "force": force}
    row = await _find(session, tenant_id, name, lock=True)
    if row is not None and row.status != "failed":
        remedy = f"It is {row.status}. Choose another name, or remove it with 'ebb models rm {name}'."
        raise AlreadyExists("model", name, remedy)
    if row is None:
        row = ModelTable(tenant_id=tenant_id, name=name, source=source, status="importing")
        session.add(row)
    row.source, row.status, row.error = source, "importing", None
    try:
        await session.flush()
    except IntegrityError as error:
        # another request added the name between the look and the insert
        raise AlreadyExists("model", name, "Choose another name.") from error
    await session.refresh(row)
    job = await enqueue(session, tenant_id, kind=IMPORT, subject=row.id, name=name, payload=payload)
    await record(session, tenant_id, "model", name, "importing", f"From {source}.", {"job": str(job.id)})
    return row, job


async def list_models(session: AsyncSession, tenant_id: UUID) -> list[ModelTable]:
    """All models of the tenant by name."""
    query = select(ModelTable).where(ModelTable.tenant_id == tenant_id).order_by(ModelTable.name)
    return list((await session.execute(query)).scalars())


async def get_model(session: AsyncSession, tenant_id: UUID, name: str) -> ModelTable:
    """Raises Missing."""
    row = await _find(session, tenant_id, name) if is_name(name) else None
    if row is None:
        raise Missing("model", name, "ebb models ls")
    return row


async def ready_model(session: AsyncSession, tenant_id: UUID, name: str) -> ModelTable:
    """The model, kept from being removed until the transaction ends. Raises Missing, and Conflict where it is not
    ready."""
    query = select(ModelTable).where(ModelTable.tenant_id == tenant_id, ModelTable.name == name)
    locked = query.with_for_update(read=True, key_share=True)
    model = (await session.execute(locked)).scalar_one_or_none() if is_name(name) else None
    if model is None:
        raise Missing("model", name, "ebb models ls")
    if model.status == "failed":
        raise Conflict(
            f"Model '{name}' could not be imported: {model.error} Add it again with 'ebb models add'.",
            code="model_failed",
            param="model",
        )
    if model.status != "ready":
        raise Conflict(
            f"Model '{name}' is {model.status}, not yet ready. 'ebb models show {name}' tells when it is.",
            code="model_not_ready",
            param="model",
        )
    return model


async def remove_model(session: AsyncSession, tenant_id: UUID, name: str) -> None:
    """Removes the model and calls off its import. Raises Missing, and InUse while an endpoint needs it."""
    row = await get_model(session, tenant_id, name)
    try:
        await session.delete(row)
        await session.flush()
    except IntegrityError as error:
        raise InUse(f"An endpoint uses the model '{name}'. Remove that first: 'ebb ps' shows it, 'ebb rm'.") from error
    open_jobs = (JobTable.subject == row.id) & JobTable.status.in_(("queued", "running"))
    await session.execute(update(JobTable).where(open_jobs).values(status="failed", error="The model was removed."))
    await record(session, tenant_id, "model", name, "removed", "by request")
    ring(session, "jobs")


async def import_done(session: AsyncSession, model_id: UUID, result: ImportResult) -> None:
    """The model is ready, with all that its import found and its first artifact."""
    row = await session.get(ModelTable, model_id, with_for_update=True)
    if row is None:  # removed meanwhile: the artifact stays in its folder, named by its digest
        return
    for field in _FACTS:
        setattr(row, field, getattr(result, field))
    row.status, row.error = "ready", None
    await artifacts.keep(session, model_id, result)
    quant = quantization.word(result.quantization)
    data = {"artifact": result.artifact, "parameters": result.parameters, "quant": quant}
    await record(session, row.tenant_id, "model", row.name, "ready", f"Imported from {row.source}.", data)
    ring(session, "endpoints", "placement", "routes")


async def import_failed(session: AsyncSession, model_id: UUID, reason: str) -> None:
    """The model failed, with the reason."""
    row = await session.get(ModelTable, model_id, with_for_update=True)
    if row is None:  # removed meanwhile: nobody is left to be told
        return
    row.status, row.error = "failed", reason
    await record(session, row.tenant_id, "model", row.name, "failed", reason)


async def _find(session: AsyncSession, tenant_id: UUID, name: str, *, lock: bool = False) -> ModelTable | None:
    query = select(ModelTable).where(ModelTable.tenant_id == tenant_id, ModelTable.name == name)
    return (await session.execute(query.with_for_update() if lock else query)).scalar_one_or_none()
