"""Asks the policy about every endpoint that is not asleep, and writes what it says. Knows nothing of placement."""

import time
from datetime import datetime
from uuid import UUID

import msgspec
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.autoscaler.policy import GatewayDemand, Limits, Observation, decide
from control_plane.db.loop import Leadership
from control_plane.endpoints import life, metrics
from control_plane.endpoints.life import Held
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.states import is_coming
from control_plane.endpoints.tables import DemandTable, EndpointTable, RevisionTable

BUSY_TICK_S = 1.0
QUIET_TICK_S = 5.0


class AutoscalerLoop:
    """Observe, decide (policy.py), apply. Nothing is kept between ticks."""

    name = "autoscaler"
    topics: tuple[str, ...] = ("endpoints",)
    interval_s = QUIET_TICK_S

    async def tick(self, leadership: Leadership) -> float | None:
        """Every second while anything runs; every few seconds while all endpoints are asleep."""
        started = time.perf_counter()
        async with leadership.database.transaction() as session:
            awake = await _awake(session)
        for endpoint_id in awake:
            await self._one(leadership, endpoint_id)
        metrics.LOOP_SECONDS.labels(self.name).observe(time.perf_counter() - started)
        return BUSY_TICK_S if awake else QUIET_TICK_S

    async def _one(self, leadership: Leadership, endpoint_id: UUID) -> None:
        async with leadership.database.transaction() as session:
            # most ticks change nothing: looked at without a lock first, and again once the row is held
            if not await _wants_change(session, endpoint_id):
                return
        async with leadership.transaction() as session:
            held = await life.hold(session, endpoint_id)
            if held is None or held.endpoint.deleted_at is not None:
                return
            if held.circuit.is_open and held.endpoint.desired > 0:
                await _retry(session, held)
            limits, observed = await _observe(session, held)
            decision = decide(observed, limits, held.now.timestamp())
            if decision.desired != held.endpoint.desired:
                await life.set_desired(session, held, decision.desired, decision.reason)


async def _retry(session: AsyncSession, held: Held) -> None:
    reason = f"The back-off is over, and {held.endpoint.desired} replicas are wanted."
    if await life.try_again(session, held, reason):
        await life.settle(session, held, reason)


async def _awake(session: AsyncSession) -> list[UUID]:
    query = select(EndpointTable.id).where(
        EndpointTable.deleted_at.is_(None),
        or_(EndpointTable.desired > 0, EndpointTable.min_replicas > 0),
    )
    return list((await session.execute(query.order_by(EndpointTable.id))).scalars())


async def _wants_change(session: AsyncSession, endpoint_id: UUID) -> bool:
    held = await life.peek(session, endpoint_id)
    if held is None:
        return False
    metrics.DESIRED.labels(held.endpoint.name).set(held.endpoint.desired)
    retry_at = held.endpoint.retry_at
    if retry_at is not None and held.now >= retry_at and held.endpoint.desired > 0:
        return True
    limits, observed = await _observe(session, held)
    return decide(observed, limits, held.now.timestamp()).desired != held.endpoint.desired


async def _observe(session: AsyncSession, held: Held) -> tuple[Limits, Observation]:
    endpoint = held.endpoint
    spec_query = select(RevisionTable.spec).where(
        RevisionTable.endpoint_id == endpoint.id, RevisionTable.number == endpoint.revision
    )
    spec = msgspec.convert((await session.execute(spec_query)).scalar_one(), RevisionSpec)
    demand = (await session.execute(select(DemandTable).where(DemandTable.endpoint_id == endpoint.id))).scalars().all()
    limits = Limits(endpoint.min_replicas, endpoint.max_replicas, endpoint.idle_s, spec.requests_per_replica)
    worked = [row.last_work_at for row in demand if row.last_work_at is not None]
    observed = Observation(
        desired=endpoint.desired,
        starting=sum(is_coming(life.view(replica)) for replica in held.replicas),
        demand=tuple(GatewayDemand(row.running, row.waiting, row.reported_at.timestamp()) for row in demand),
        last_work_at=_latest(worked),
        last_wake_at=_latest([at for at in (endpoint.last_wake_at, endpoint.asked_at) if at is not None]),
        last_ready_at=_latest([] if endpoint.last_ready_at is None else [endpoint.last_ready_at]),
    )
    return limits, observed


def _latest(moments: list[datetime]) -> float | None:
    return max(moments).timestamp() if moments else None
