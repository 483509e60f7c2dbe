"""Records what changed and why, and reads it back. Never commits. Knows nothing of what the events are about."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import event, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from control_plane.db.bells import ring
from control_plane.events.tables import EventTable

EventKind = Literal["endpoint", "replica", "node", "model", "job", "key"]
PENDING = "ebb_events"
LOCK = 0x6562_6265  # any number that nothing else in the database locks by
MAX_REASON = 2000


async def record(
    session: AsyncSession,
    tenant_id: UUID,
    kind: EventKind,
    subject: str,
    type: str,
    reason: str,
    data: dict[str, Any] | None = None,
) -> None:
    """Adds an event to this transaction and rings `events`. It is written just before the commit."""
    pending: list[dict[str, Any]] = session.info.setdefault(PENDING, [])
    pending.append(
        {
            "tenant_id": tenant_id,
            "kind": kind,
            "subject": subject,
            "type": type,
            "reason": reason.replace("\0", " ")[:MAX_REASON],
            "data": data or {},
        }
    )


@event.listens_for(Session, "before_commit", insert=True)
def _write_pending(session: Session) -> None:
    """Writes the transaction's events under a lock held until the commit is visible. Without it an event could appear
    behind a later one that a stream has already sent, and be missed by it; taking it last keeps it from deadlocking."""
    pending: list[dict[str, Any]] = session.info.pop(PENDING, [])
    if not pending:
        return
    session.flush()
    session.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    session.execute(insert(EventTable), pending)
    ring(session, "events")


@event.listens_for(Session, "after_rollback")
def _drop_pending(session: Session) -> None:
    session.info.pop(PENDING, None)


async def list_events(
    session: AsyncSession, tenant_id: UUID, *, limit: int, after: int | None = None, subject: str | None = None
) -> list[EventTable]:
    """Events in order: the first `limit` after id `after`, or the last `limit` of all where it is None."""
    query = select(EventTable).where(EventTable.tenant_id == tenant_id)
    if subject is not None:
        query = query.where(EventTable.subject == subject)
    if after is not None:
        query = query.where(EventTable.id > after).order_by(EventTable.id).limit(limit)
        return list((await session.execute(query)).scalars())
    newest = list((await session.execute(query.order_by(EventTable.id.desc()).limit(limit))).scalars())
    return newest[::-1]


async def last_of(session: AsyncSession, tenant_id: UUID, kind: EventKind, subject: str, type: str) -> datetime | None:
    """When the last event of the type was recorded on the subject; None where there is none (any more)."""
    about = (EventTable.tenant_id == tenant_id) & (EventTable.subject == subject)
    query = select(EventTable.at).where(about, EventTable.kind == kind, EventTable.type == type)
    return (await session.execute(query.order_by(EventTable.id.desc()).limit(1))).scalar_one_or_none()
