"""The jobs table: what must be done outside a request. A row written in a request's transaction is the order; any
message about it is only a hint. Knows nothing of what the kinds of job do."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import TenantRow
from control_plane.db.bells import ring

JobStatus = Literal["queued", "running", "done", "failed"]


class JobTable(TenantRow):
    """One long piece of work. `subject` is the id of the row it is about, `name` what people call that."""

    __tablename__ = "jobs"

    kind: Mapped[str]
    subject: Mapped[UUID] = mapped_column(index=True)
    name: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(default="queued", index=True)
    stage: Mapped[str | None]
    progress: Mapped[dict[str, Any] | None]
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    worker: Mapped[str | None]
    """Who runs it: a name that no two starts of a worker share."""
    lease_until: Mapped[datetime | None]
    """Past this time the worker is taken for dead and the job is queued again."""
    heartbeat_at: Mapped[datetime | None]
    hinted_at: Mapped[datetime | None]
    hints: Mapped[int] = mapped_column(default=0)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


async def enqueue(
    session: AsyncSession, tenant_id: UUID, *, kind: str, subject: UUID, name: str, payload: dict[str, Any]
) -> JobTable:
    """Orders a job in this transaction; it is hinted to a worker right after the commit."""
    row = JobTable(tenant_id=tenant_id, kind=kind, subject=subject, name=name, payload=payload)
    session.add(row)
    await session.flush()
    await session.refresh(row)
    ring(session, "jobs")
    return row
