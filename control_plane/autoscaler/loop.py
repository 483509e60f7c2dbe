"""Asks the policy about every endpoint that is not asleep, and writes what it says. Knows nothing of placement."""

import math
import time
from datetime import datetime
from uuid import UUID

import msgspec
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.autoscaler.policy import GatewayDemand, Limits, Observation, decide
from control_plane.db.clock import unix
from control_plane.db.loop import Leadership
from control_plane.decisions.service import Basis
from control_plane.endpoints import life, metrics
from control_plane.endpoints.life import Held
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.states import is_coming, serves
from control_plane.endpoints.tables import DemandTable, EndpointTable, RevisionTable

TICK_S = 5.0
SOONEST_S = 0.05


class AutoscalerLoop:
    """Observe, decide (policy.py), apply. Nothing is kept between ticks."""

    name = "autoscaler"
    topics: tuple[str, ...] = ("endpoints",)
    interval_s = TICK_S

    async def tick(self, leadership: Leadership) -> float | None:
        """At every bell (gateways ring it while there is work), and when some endpoint's idle time is over."""
        started = time.perf_counter()
        async with leadership.database.transaction() as session:
            awake = await _awake(session)
        again_s = min([await self._one(leadership, endpoint_id) for endpoint_id in awake], default=TICK_S)
        metrics.LOOP_SECONDS.labels(self.name).observe(time.perf_counter() - started)
        return max(SOONEST_S, again_s)

    async def _one(self, leadership: Leadership, endpoint_id: UUID) -> float:
        """Seconds after which to look again."""
        async with leadership.database.transaction() as session:
            # most ticks change nothing: looked at without a lock first, and again once the row is held
            again_s = await _rest_s(session, endpoint_id)
        if again_s is None:
            await self._change(leadership, endpoint_id)
        return TICK_S if again_s is None else again_s

    async def _change(self, leadership: Leadership, endpoint_id: UUID) -> None:
        async with leadership.transaction() as session:
            held = await life.hold(session, endpoint_id)
            if held is None or held.endpoint.deleted_at is not None:
                return
            if held.circuit.is_open and held.endpoint.desired > 0:
                await _retry(session, held)
            limits, observed = await _observe(session, held)
            decision = decide(observed, limits, held.now.timestamp())
            if decision.desired != held.endpoint.desired:
                asked = {"observed": observed, "limits": limits, "now": held.now.timestamp()}
                await life.set_desired(session, held, decision.desired, decision.reason, Basis("autoscaler", asked))


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


async def _rest_s(session: AsyncSession, endpoint_id: UUID) -> float | None:
    """Seconds until time alone may change something; None where something is to change now."""
    held = await life.peek(session, endpoint_id)
    if held is None:
        return TICK_S
    metrics.DESIRED.labels(held.endpoint.name).set(held.endpoint.desired)
    until_retry_s = math.inf
    if held.endpoint.retry_at is not None and held.endpoint.desired > 0:
        until_retry_s = (held.endpoint.retry_at - held.now).total_seconds()
        if until_retry_s <= 0:
            return None
    limits, observed = await _observe(session, held)
    decision = decide(observed, limits, held.now.timestamp())
    if decision.desired != held.endpoint.desired:
        return None
    return min(decision.again_s, until_retry_s)


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
        promised_until=unix(endpoint.promised_until),
        serving=sum(serves(life.view(replica)) for replica in held.replicas),
    )
    return limits, observed


def _latest(moments: list[datetime]) -> float | None:
    return max(moments).timestamp() if moments else None
