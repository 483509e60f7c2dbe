"""Notes what gateways say of the work on endpoints. It stands in rows, so a restart of the control plane loses none.
Knows nothing of what is done about it."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import ring
from control_plane.db.clock import db_now
from control_plane.endpoints.tables import DemandTable, EndpointTable
from data_plane.wire.routes import DemandReport

LONGEST_IDLE_S = 10 * 366 * 86_400.0
MOST_REQUESTS = 2**31 - 1
HEARD_S = 15.0
"""A gateway reports at least every 5 s: one that has missed two reports is gone."""
JUST_NOW_S = 1.0
"""Work that ended so recently is news: from it the idle time counts."""


async def note(session: AsyncSession, report: DemandReport) -> None:
    """Stores the report. Endpoints that are gone are passed over; rows are written in one order, so reports that
    cross do not block each other for good."""
    given = {_uuid(demand.endpoint_id): demand for demand in report.endpoints}
    given.pop(None, None)
    known = await _known(session, [endpoint_id for endpoint_id in given if endpoint_id is not None])
    if not known:
        return
    now = await db_now(session)
    values: list[dict[str, object]] = []
    for endpoint_id in known:
        demand = given[endpoint_id]
        idle_s = 0.0 if demand.running + demand.waiting else min(max(0.0, demand.idle_for_s), LONGEST_IDLE_S)
        values.append(
            {
                "endpoint_id": endpoint_id,
                "gateway": report.gateway[:200],
                "running": min(max(0, demand.running), MOST_REQUESTS),
                "waiting": min(max(0, demand.waiting), MOST_REQUESTS),
                "last_work_at": now - timedelta(seconds=idle_s),
                "reported_at": now,
            }
        )
    new = insert(DemandTable).values(values)
    await session.execute(
        new.on_conflict_do_update(
            index_elements=["endpoint_id", "gateway"],
            set_={
                "running": new.excluded.running,
                "waiting": new.excluded.waiting,
                "last_work_at": func.greatest(DemandTable.last_work_at, new.excluded.last_work_at),
                "reported_at": new.excluded.reported_at,
            },
        )
    )
    if any(demand.running + demand.waiting or demand.idle_for_s < JUST_NOW_S for demand in report.endpoints):
        await ring(session, "endpoints")


async def gateways(session: AsyncSession) -> int:
    """How many gateways there are, by their reports; at least one, since someone asks."""
    heard = DemandTable.reported_at > func.clock_timestamp() - timedelta(seconds=HEARD_S)
    return max(1, (await session.execute(select(func.count(DemandTable.gateway.distinct())).where(heard))).scalar_one())


async def _known(session: AsyncSession, ids: Sequence[UUID]) -> list[UUID]:
    if not ids:
        return []
    query = select(EndpointTable.id).where(EndpointTable.id.in_(ids), EndpointTable.deleted_at.is_(None))
    return sorted((await session.execute(query)).scalars())


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None  # not an id of ours: an endpoint that cannot exist has no demand
