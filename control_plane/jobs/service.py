"""The life of a job: queued, running under a worker's lease, done or failed. Never commits; time is the database's.
Whoever writes to a running job proves that the lease is still its own. Knows nothing of brokers."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog.service import IMPORT, import_failed
from control_plane.db.bells import ring
from control_plane.db.outbox import JobStatus, JobTable
from control_plane.errors import Missing, StaleEpoch
from control_plane.events.service import record

LEASE_S = 6.0
HEARTBEAT_S = 2.0
MAX_ATTEMPTS = 3
HINT_AGAIN_S = 600.0
QUICK_HINTS = 3
"""So many hints in a row are sent 2 s after one another: of those one may be lost, or two."""
RETRY_HINTS = 4
"""A job that is to wait before its next attempt counts as hinted so often: 4 s."""

NOW = func.clock_timestamp()


def _in(seconds: float) -> Any:
    return NOW + text(f"interval '{float(seconds)} seconds'")


async def list_jobs(session: AsyncSession, tenant_id: UUID, *, limit: int = 100) -> list[JobTable]:
    """The tenant's newest jobs, newest first."""
    query = select(JobTable).where(JobTable.tenant_id == tenant_id).order_by(JobTable.created_at.desc(), JobTable.id)
    return list((await session.execute(query.limit(limit))).scalars())


async def get_job(session: AsyncSession, tenant_id: UUID, job_id: UUID) -> JobTable:
    """Raises Missing."""
    query = select(JobTable).where(JobTable.tenant_id == tenant_id, JobTable.id == job_id)
    row = (await session.execute(query)).scalar_one_or_none()
    if row is None:
        raise Missing("job", str(job_id), "ebb jobs ls")
    return row


async def claim(session: AsyncSession, job_id: UUID, worker: str) -> JobTable | None:
    """The job, now running under a lease of `worker`; None if it is not queued or someone else is just taking it."""
    query = select(JobTable).where(JobTable.id == job_id, JobTable.status == "queued")
    row = (await session.execute(query.with_for_update(skip_locked=True))).scalar_one_or_none()
    if row is None:
        return None
    row.attempts += 1
    row.worker = worker
    row.started_at = row.started_at or await _now(session)
    row.stage, row.progress = None, None
    await _move(session, row, "running", f"A worker took it (attempt {row.attempts}).")
    await _extend(session, row)
    return row


async def heartbeat(session: AsyncSession, job_id: UUID, worker: str) -> None:
    """Extends the lease. Raises StaleEpoch where the job is no longer this worker's."""
    await _extend(session, await owned(session, job_id, worker))


async def owned(session: AsyncSession, job_id: UUID, worker: str) -> JobTable:
    """The running job, locked. Raises StaleEpoch where it is no longer this worker's."""
    query = select(JobTable).where(JobTable.id == job_id).with_for_update()
    row = (await session.execute(query)).scalar_one_or_none()
    if row is None or row.status != "running" or row.worker != worker:
        raise StaleEpoch(f"the job {job_id}", 0 if row is None else row.attempts)
    return row


async def progress(session: AsyncSession, job_id: UUID, worker: str, stage: str, done: int, total: int) -> None:
    """Shows how far the job is, in bytes. Raises StaleEpoch."""
    row = await owned(session, job_id, worker)
    row.stage = stage
    row.progress = {"stage": stage, "done": done, "total": total}


async def finish(session: AsyncSession, row: JobTable, result: dict[str, Any]) -> None:
    """The job is done."""
    row.result = result
    await _end(session, row, "done", "Finished.")


async def fail(session: AsyncSession, row: JobTable, reason: str) -> None:
    """The job failed for good, and so did what it was about."""
    row.error = reason
    await _end(session, row, "failed", reason)
    if row.kind == IMPORT:
        await import_failed(session, row.subject, reason)


async def give_back(session: AsyncSession, row: JobTable, reason: str, *, at_once: bool) -> None:
    """Queues the job again, or fails it once it has had its attempts. Not `at_once`: after a pause."""
    if row.attempts >= MAX_ATTEMPTS:
        await fail(session, row, f"{reason} It was tried {row.attempts} times and is given up.")
        return
    row.worker, row.lease_until = None, None
    row.hints, row.hinted_at = (0, None) if at_once else (RETRY_HINTS, await _now(session))
    await _move(session, row, "queued", reason)
    ring(session, "jobs")


async def requeue_lost(session: AsyncSession) -> int:
    """Queues again what running jobs' dead workers left; the number of them."""
    query = select(JobTable).where(JobTable.status == "running", JobTable.lease_until < NOW)
    rows = list((await session.execute(query.with_for_update(skip_locked=True))).scalars())
    for row in rows:
        await give_back(session, row, f"Its worker '{row.worker}' was lost.", at_once=True)
    return len(rows)


async def take_hints(session: AsyncSession, *, limit: int = 100) -> list[UUID]:
    """Queued jobs that a worker must be told of now: never told, or told long ago and still there. A hint is repeated
    ever more rarely, so that a worker that is away for long does not come back to a heap of them."""
    due = or_(JobTable.hinted_at.is_(None), _hint_due() <= NOW)
    query = select(JobTable).where(JobTable.status == "queued", due).order_by(JobTable.created_at).limit(limit)
    rows = list((await session.execute(query.with_for_update(skip_locked=True))).scalars())
    now = await _now(session)
    for row in rows:
        row.hinted_at = now
        row.hints += 1
    return [row.id for row in rows]


async def unhint(session: AsyncSession, job_ids: Sequence[UUID]) -> None:
    """Their hints did not leave: they are due again, and no more rarely than before."""
    still = (JobTable.id.in_(job_ids)) & (JobTable.status == "queued")
    hints = func.greatest(JobTable.hints - 1, 0)
    await session.execute(update(JobTable).where(still).values(hinted_at=None, hints=hints))


async def next_look_s(session: AsyncSession) -> float | None:
    """Seconds until a running job's lease runs out or a queued job's hint must be sent again; None: neither."""
    lease = select(func.min(JobTable.lease_until)).where(JobTable.status == "running").scalar_subquery()
    hint = select(func.min(_hint_due())).where(JobTable.status == "queued").scalar_subquery()
    query = select(func.extract("epoch", func.least(lease, hint) - NOW))
    seconds: Any = (await session.execute(query)).scalar_one()
    return None if seconds is None else max(0.05, float(seconds))


def _hint_due() -> Any:
    """2, 2, 2, 4, 8 … s after the last hint."""
    doublings = func.greatest(func.least(JobTable.hints, 20) - QUICK_HINTS, 0)
    pause_s = func.least(2 * func.power(2, doublings), HINT_AGAIN_S)
    return JobTable.hinted_at + func.make_interval(0, 0, 0, 0, 0, 0, pause_s)


async def _now(session: AsyncSession) -> datetime:
    return (await session.execute(select(NOW))).scalar_one()


async def _extend(session: AsyncSession, row: JobTable) -> None:
    row.heartbeat_at = NOW
    row.lease_until = _in(LEASE_S)
    await session.flush()


async def _end(session: AsyncSession, row: JobTable, status: JobStatus, reason: str) -> None:
    row.ended_at = await _now(session)
    row.lease_until = None
    await _move(session, row, status, reason)


async def _move(session: AsyncSession, row: JobTable, status: JobStatus, reason: str) -> None:
    row.status = status
    await session.flush()
    data = {"job": str(row.id), "kind": row.kind, "attempts": row.attempts}
    await record(session, row.tenant_id, "job", row.name, status, reason, data)
