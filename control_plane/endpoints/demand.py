"""Notes what gateways say of the work on endpoints. It stands in rows, so a restart of the control plane loses none.
Knows nothing of what is done about it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog
from sqlalchemy import ScalarSelect, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import ring
from control_plane.db.clock import db_now
from control_plane.endpoints.minutes import with_sample
from control_plane.endpoints.tables import DemandTable, EndpointTable, GatewayTable
from control_plane.usage import service as usage
from data_plane.wire.routes import DemandReport, EndpointDemand
from data_plane.wire.usage import UsageBatch

LONGEST_IDLE_S = 10 * 366 * 86_400.0
MOST_REQUESTS = 2**31 - 1
HEARD_S = 15.0
"""A gateway reports at least every 5 s: one that has missed two reports is gone."""
JUST_NOW_S = 1.0
"""Work that ended so recently is news: from it the idle time counts."""

_log = structlog.get_logger("control_plane.demand")


async def note(session: AsyncSession, report: DemandReport) -> None:
    """Stores the report. Endpoints that are gone are passed over; rows are written in one order, so reports that
    cross do not block each other for good."""
    now = await db_now(session)
    gateway = report.gateway[:200]
    heard = insert(GatewayTable).values(name=gateway, heard_at=now)
    await session.execute(heard.on_conflict_do_update(index_elements=["name"], set_={"heard_at": now}))
    if report.usage is not None:
        await _note_usage(session, gateway, report.usage, now)
    given = {_uuid(demand.endpoint_id): demand for demand in report.endpoints}
    given.pop(None, None)
    known = await _known(session, [endpoint_id for endpoint_id in given if endpoint_id is not None])
    if report.is_whole:
        # what it had in hand before it, or its word of it, was lost is not in hand any more
        others = (DemandTable.gateway == gateway) & DemandTable.endpoint_id.not_in(known)
        none = {"running": 0, "waiting": 0, "reported_at": now}
        await session.execute(update(DemandTable).where(others).values(none))
    if not known:
        return
    samples = await _samples(session, gateway, known)
    await _write(session, [_row(given[each], each, gateway, samples.get(each, []), now) for each in known])
    if any(demand.running + demand.waiting or _ended_just_now(demand) for demand in report.endpoints):
        ring(session, "endpoints")


async def _note_usage(session: AsyncSession, gateway: str, batch: UsageBatch, now: datetime) -> None:
    """Demand wakes endpoints, so usage must not stand in its way: what cannot be stored is lost, and that is told."""
    ids = {_uuid(each.endpoint_id) for each in batch.endpoints} - {None}
    query = select(EndpointTable.id, EndpointTable.tenant_id, EndpointTable.name).where(EndpointTable.id.in_(ids))
    # of those that were deleted meanwhile too: their requests were served
    owners = {str(id): (tenant_id, name) for id, tenant_id, name in await session.execute(query)}
    try:
        async with session.begin_nested():
            await usage.note(session, gateway, batch, owners, now)
    except DBAPIError as error:
        _log.error("usage_not_stored", gateway=gateway, number=batch.number, reason=str(error).splitlines()[:1])


def _row(
    demand: EndpointDemand, endpoint_id: UUID, gateway: str, samples: list[Any], now: datetime
) -> dict[str, object]:
    idle_s = 0.0 if demand.running + demand.waiting else demand.idle_for_s
    if demand.totals is not None:
        samples = with_sample(samples, [now.timestamp(), *msgspec.structs.astuple(demand.totals)])
    return {
        "endpoint_id": endpoint_id,
        "gateway": gateway,
        "running": _count(demand.running),
        "waiting": _count(demand.waiting),
        "kv_tokens": _count(demand.kv_tokens),
        "last_work_at": None if idle_s is None else now - timedelta(seconds=min(max(0.0, idle_s), LONGEST_IDLE_S)),
        "reported_at": now,
        "samples": samples,
        "latency": None if demand.latency is None else msgspec.to_builtins(demand.latency),
    }


async def _write(session: AsyncSession, rows: list[dict[str, object]]) -> None:
    new = insert(DemandTable).values(rows)
    replaced = ("running", "waiting", "kv_tokens", "reported_at", "samples", "latency")
    await session.execute(
        new.on_conflict_do_update(
            index_elements=["endpoint_id", "gateway"],
            set_={
                **{name: new.excluded[name] for name in replaced},
                "last_work_at": func.greatest(DemandTable.last_work_at, new.excluded.last_work_at),
            },
        )
    )


async def _samples(session: AsyncSession, gateway: str, ids: Sequence[UUID]) -> dict[UUID, list[Any]]:
    query = select(DemandTable.endpoint_id, DemandTable.samples)
    rows = await session.execute(query.where(DemandTable.gateway == gateway, DemandTable.endpoint_id.in_(ids)))
    return {endpoint_id: samples for endpoint_id, samples in rows}


async def of(session: AsyncSession, endpoint_id: UUID) -> list[tuple[datetime, DemandTable | None]]:
    """Each gateway's last sign of life, and its word on the endpoint; None where it never had work there."""
    about = (DemandTable.gateway == GatewayTable.name) & (DemandTable.endpoint_id == endpoint_id)
    query = select(GatewayTable.heard_at, DemandTable).outerjoin(DemandTable, about)
    # populate_existing: a session that looked before must not be told the same again
    rows = await session.execute(query.execution_options(populate_existing=True))
    return [(heard_at, row) for heard_at, row in rows]


def gateways() -> ScalarSelect[int]:
    """How many gateways there are, by their reports: for a query."""
    heard = GatewayTable.heard_at > func.clock_timestamp() - timedelta(seconds=HEARD_S)
    return select(func.count(GatewayTable.name)).where(heard).scalar_subquery()


async def _known(session: AsyncSession, ids: Sequence[UUID]) -> list[UUID]:
    if not ids:
        return []
    query = select(EndpointTable.id).where(EndpointTable.id.in_(ids), EndpointTable.deleted_at.is_(None))
    return sorted((await session.execute(query)).scalars())


def _ended_just_now(demand: EndpointDemand) -> bool:
    return demand.idle_for_s is not None and demand.idle_for_s < JUST_NOW_S


def _count(number: int) -> int:
    return min(max(0, number), MOST_REQUESTS)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None  # not an id of ours: an endpoint that cannot exist has no demand
