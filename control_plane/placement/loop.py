"""Brings the replicas of each endpoint to the desired number: new ones get a node and a device, surplus ones are let
go. Knows nothing of load, nor of what agents do with its rows."""

import time
from datetime import datetime
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog.quantization import DeviceKind
from control_plane.db.loop import Leadership
from control_plane.endpoints import life, metrics
from control_plane.endpoints.life import Held
from control_plane.endpoints.memory import Estimate, estimate
from control_plane.endpoints.specs import RevisionSpec, replica_spec
from control_plane.endpoints.states import ENDED
from control_plane.endpoints.tables import EndpointTable, ReplicaTable, RevisionTable
from control_plane.nodes.tables import NodeTable
from control_plane.placement.planner import DeviceView, Need, NoRoom, Placed, plan
from control_plane.placement.rollout import SURPLUS, Copy, next_steps
from data_plane.wire.fleet import Device, StartFailure

TICK_S = 5.0
UNHEARD_S = 0.2


class PlacementLoop:
    """Observe, decide (rollout.py, planner.py), apply, one endpoint a transaction. Nothing is kept between ticks."""

    name = "placement"
    topics: tuple[str, ...] = ("placement",)
    interval_s = TICK_S

    async def tick(self, leadership: Leadership) -> float | None:
        """Does what there is to do; the bell brings the next round at once."""
        started = time.perf_counter()
        async with leadership.database.transaction() as session:
            if leadership.recovered is not None and await _unheard(session, leadership.recovered.now):
                return UNHEARD_S  # a node may run what the database has forgotten: a second start would be in vain
            askew = await _askew(session)
        for endpoint_id in askew:
            async with leadership.transaction() as session:
                held = await life.hold(session, endpoint_id)
                if held is not None:
                    await _settle_copies(session, held)
        metrics.LOOP_SECONDS.labels(self.name).observe(time.perf_counter() - started)
        return None


async def _unheard(session: AsyncSession, since: datetime) -> bool:
    """Whether some node has yet to say what it runs. One that stays silent counts as lost in the end."""
    query = select(NodeTable.id).where(NodeTable.status == "ready", NodeTable.last_seen_at < since).limit(1)
    return (await session.execute(query)).first() is not None


async def _askew(session: AsyncSession) -> list[UUID]:
    """Endpoints whose current replicas are not as many as desired, or that still have others; longest waiting first."""
    run = (ReplicaTable.intent == "run") & ReplicaTable.status.not_in(ENDED)
    current = func.count(case((run & (ReplicaTable.generation == EndpointTable.revision), 1)))
    old = func.count(case((run & (ReplicaTable.generation != EndpointTable.revision), 1)))
    query = (
        select(EndpointTable.id)
        .outerjoin(ReplicaTable, (ReplicaTable.endpoint_id == EndpointTable.id) & run)
        .group_by(EndpointTable.id)
        .having((current != EndpointTable.desired) | (old > 0))
        .order_by(EndpointTable.asked_at, EndpointTable.id)
    )
    return list((await session.execute(query)).scalars())


async def _settle_copies(session: AsyncSession, held: Held) -> None:
    endpoint = held.endpoint
    copies = [
        Copy(str(row.id), row.generation, row.status, row.intent, row.created_at.timestamp()) for row in held.replicas
    ]
    steps = next_steps(copies, endpoint.desired, endpoint.revision, may_start=not held.circuit.is_open)
    rows = {str(row.id): row for row in held.replicas}
    for replica_id, reason in steps.release:
        # why fewer are desired says more than that they are
        await life.release(session, held, rows[replica_id], endpoint.reason if reason is SURPLUS else reason)
    for _ in range(steps.start):
        if not await _start_one(session, held):
            return


async def _start_one(session: AsyncSession, held: Held) -> bool:
    endpoint = held.endpoint
    query = select(RevisionTable.spec).where(
        RevisionTable.endpoint_id == endpoint.id, RevisionTable.number == endpoint.revision
    )
    spec = msgspec.convert((await session.execute(query)).scalar_one(), RevisionSpec)
    choice = plan(await _devices(session, endpoint.id), Need(spec.device, _estimates(spec)))
    if isinstance(choice, NoRoom):
        await _no_room(session, held, choice)
        return False
    await life.place(session, held, _new_replica(held, spec, choice), choice.node)
    return True


async def _no_room(session: AsyncSession, held: Held, why: NoRoom) -> None:
    if why.permanent:
        await life.fail_start(session, held, StartFailure(why.message, True))
        await life.settle(session, held, why.message)
    elif held.endpoint.obstacle != why.message:
        await life.hinder(session, held, why.message)


def _new_replica(held: Held, spec: RevisionSpec, choice: Placed) -> ReplicaTable:
    taken = {row.ordinal for row in held.replicas if row.intent == "run" and row.generation == held.endpoint.revision}
    return ReplicaTable(
        id=uuid4(),
        endpoint_id=held.endpoint.id,
        generation=held.endpoint.revision,
        ordinal=next(ordinal for ordinal in range(len(taken) + 1) if ordinal not in taken),
        node_id=UUID(choice.node_id),
        device=choice.device,
        status="placing",
        intent="run",
        reason="Placed.",
        spec=msgspec.to_builtins(replica_spec(spec, choice.device, choice.estimate.kv_cache_bytes)),
        promised_bytes=choice.estimate.total_bytes,
        memory_bytes=0,
        slots=0,
        max_model_len=0,
        spans={},
        created_at=held.now,
    )


def _estimates(spec: RevisionSpec) -> dict[DeviceKind, Estimate]:
    kinds: tuple[DeviceKind, ...] = ("cpu", "cuda")
    return {
        kind: estimate(spec.size, context=spec.context, concurrency=spec.concurrency, dtype=spec.dtype, kind=kind)
        for kind in kinds
    }


async def _devices(session: AsyncSession, endpoint_id: UUID) -> tuple[DeviceView, ...]:
    """All devices of ready nodes. The read sees what this loop itself has promised a moment ago: one loop promises."""
    own = func.count(case((ReplicaTable.endpoint_id == endpoint_id, 1)))
    promised = (
        select(ReplicaTable.node_id, ReplicaTable.device, func.sum(ReplicaTable.promised_bytes), own)
        .where(ReplicaTable.status.not_in(ENDED))
        .group_by(ReplicaTable.node_id, ReplicaTable.device)
    )
    taken = {
        (node_id, device): (int(total), count) for node_id, device, total, count in await session.execute(promised)
    }
    nodes = (await session.execute(select(NodeTable).where(NodeTable.status == "ready"))).scalars()
    views: list[DeviceView] = []
    for node in nodes:
        for device in msgspec.convert(node.devices, tuple[Device, ...]):
            name = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
            total, count = taken.get((node.id, name), (0, 0))
            views.append(DeviceView(str(node.id), node.name, name, device.kind, device.memory_bytes, total, count))
    return tuple(views)
