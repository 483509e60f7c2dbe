"""From rows to what the policy looks at: one endpoint's limits, and what there is of it. Writes nothing, decides
nothing."""

from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.autoscaler import bearings
from control_plane.autoscaler.bearings import Known
from control_plane.autoscaler.lessons import merged
from control_plane.autoscaler.policy import FRESH_S, Limits, Observation
from control_plane.autoscaler.reports import Told, demand_of
from control_plane.db.clock import unix
from control_plane.endpoints import demand, life
from control_plane.endpoints.life import Held
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.states import is_coming, serves
from control_plane.endpoints.tables import DemandTable, RevisionTable
from data_plane.wire.routes import Latency


@dataclass(frozen=True)
class Sight:
    """One endpoint at one moment. `limits.idle_s` is the number in its row; who sleeps by itself has another."""

    limits: Limits
    observed: Observation
    known: Known | None
    latency: Latency | None


async def observe(session: AsyncSession, held: Held) -> Sight:
    """An endpoint as its rows have it now."""
    endpoint = held.endpoint
    spec_query = select(RevisionTable.spec).where(
        RevisionTable.endpoint_id == endpoint.id, RevisionTable.number == endpoint.revision
    )
    spec = msgspec.convert((await session.execute(spec_query)).scalar_one(), RevisionSpec)
    heard = await demand.of(session, endpoint.id)
    known = await bearings.of(session, held, spec)
    limits = Limits(
        endpoint.min_replicas,
        endpoint.max_replicas,
        endpoint.idle_s,
        spec.requests_per_replica,
        None if known is None else known.bearing,
    )
    now = held.now.timestamp()
    told = [row.latency for _, row in heard if row is not None and row.latency is not None]
    latency = merged([msgspec.convert(one, Latency) for one in told])
    worked = [row.last_work_at.timestamp() for _, row in heard if row is not None and row.last_work_at is not None]
    woken = [at.timestamp() for at in (endpoint.last_wake_at, endpoint.asked_at) if at is not None]
    observed = Observation(
        desired=endpoint.desired,
        starting=sum(is_coming(life.view(replica)) for replica in held.replicas),
        demand=demand_of([_told(heard_at, row) for heard_at, row in heard], endpoint.desired, limits, now),
        last_work_at=max(worked, default=None),
        last_wake_at=max(woken, default=None),
        last_ready_at=unix(endpoint.last_ready_at),
        promised_until=unix(endpoint.promised_until),
        serving=sum(serves(life.view(replica)) for replica in held.replicas),
        raised_at=unix(endpoint.asked_at),
        answers_per_s=0.0 if latency is None else latency.answers / max(1.0, latency.over_s),
    )
    return Sight(limits, observed, known, latency)


def has_work(observed: Observation, now: float) -> bool | None:
    """Whether any gateway that is heard has work; None where none is heard."""
    fresh = [report for report in observed.demand if now - report.reported_at <= FRESH_S]
    return any(report.running + report.waiting for report in fresh) if fresh else None


def _told(heard_at: datetime, row: DemandTable | None) -> Told:
    at = heard_at.timestamp()
    return Told(0, 0, at) if row is None else Told(row.running, row.waiting, at, row.kv_tokens, row.samples)
