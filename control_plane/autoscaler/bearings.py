"""What replicas of an artifact bear, kept in rows: first by the artifact's measured speed, then by what is served.
Knows nothing of how many replicas follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.autoscaler.bearing import KV_FULL, Bearing, may_wait_s, measured
from control_plane.autoscaler.lessons import lesson
from control_plane.autoscaler.policy import Observation
from control_plane.catalog.artifacts import speed_of
from control_plane.endpoints.life import Held
from control_plane.endpoints.memory import kv_bytes_per_token
from control_plane.endpoints.slo import Slo
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.tables import BearingTable, ReplicaTable
from control_plane.events.service import record
from data_plane.wire.routes import Latency


@dataclass(frozen=True)
class Known:
    """What is known of an artifact on a kind of device, for the latency that an endpoint is to hold."""

    artifact: str
    device: str
    slo: Slo
    bearing: Bearing
    changed_at: float
    """Unix seconds; 0 where it is still the estimate of before anything was served."""


async def of(session: AsyncSession, held: Held, spec: RevisionSpec) -> Known | None:
    """None for an endpoint without a latency to hold, without a replica, or whose artifact nobody measured."""
    if held.endpoint.slo is None or not held.replicas:
        return None
    slo = msgspec.convert(held.endpoint.slo, Slo)
    device = held.replicas[0].device.partition(":")[0]
    row = await session.get(BearingTable, (spec.artifact, device, slo.word), populate_existing=True)
    if row is None and device != "cpu":
        return None  # artifacts are measured on CPUs: that says nothing of a GPU
    if row is None:
        first = measured(await speed_of(session, spec.artifact), slo, spec.concurrency)
        return None if first is None else Known(spec.artifact, device, slo, _with_kv(first, held.replicas, spec), 0.0)
    bearing = _with_kv(Bearing(row.prefill_per_s, row.decode_per_s, wait_s=may_wait_s(slo)), held.replicas, spec)
    return Known(spec.artifact, device, slo, bearing, row.changed_at.timestamp())


def news(known: Known, observed: Observation, latency: Latency | None, now: float) -> Bearing | None:
    """What the last minute taught of it; None where it taught nothing."""
    return lesson(known.bearing, known.slo, known.changed_at, observed, latency, now)


async def write(session: AsyncSession, held: Held, known: Known, better: Bearing) -> None:
    """Keeps what was learned, and tells of it."""
    facts = {
        "prefill_per_s": better.prefill_per_s,
        "decode_per_s": better.decode_per_s,
        "source": "learned",
        "changed_at": held.now,
    }
    new = insert(BearingTable).values(artifact=known.artifact, device=known.device, slo=known.slo.word, **facts)
    await session.execute(new.on_conflict_do_update(index_elements=["artifact", "device", "slo"], set_=facts))
    endpoint = held.endpoint
    reason = (
        f"By what was served, a replica within its latency bears {better} of prompts and answers, not {known.bearing}."
    )
    await record(session, endpoint.tenant_id, "endpoint", endpoint.name, "learned", reason, {"slo": known.slo.word})


def _with_kv(bearing: Bearing, replicas: Sequence[ReplicaTable], spec: RevisionSpec) -> Bearing:
    first = replicas[0]
    kind = "cuda" if first.device.startswith("cuda") else "cpu"
    per_token = kv_bytes_per_token(spec.size, dtype=spec.dtype, kind=kind)
    cache_bytes = float(first.spec.get("kv_cache_bytes") or 0)
    if not per_token or not cache_bytes:
        return bearing
    return replace(bearing, kv_tokens=max(1.0, cache_bytes / per_token * KV_FULL))
