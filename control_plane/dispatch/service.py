"""Tells nodes what is wanted of them, and takes in what they report. Never commits. Knows nothing of why a replica is
wanted or where another could go."""

import hashlib
from uuid import UUID

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db import metrics as store
from control_plane.db.bells import ring
from control_plane.db.clock import db_now
from control_plane.dispatch import forgotten
from control_plane.dispatch.diff import Change, Ended, Seen, Stray, Wanted, compare
from control_plane.endpoints import life
from control_plane.endpoints.life import Held
from control_plane.endpoints.states import ENDED
from control_plane.endpoints.tables import EndpointTable, ReplicaTable
from control_plane.errors import Missing
from control_plane.nodes import service as nodes
from control_plane.nodes.tables import NodeTable
from control_plane.tenants.service import key_records
from data_plane.wire.fleet import (
    DesiredReplica,
    DesiredState,
    NodeReport,
    ObservedReplica,
    ReplicaPhase,
    ReplicaSpec,
    StartFailure,
)

PHASE_REASONS: dict[ReplicaPhase, str] = {
    "starting": "The node starts its runner.",
    "loading": "The runner loads its weights.",
    "warming": "The runner warms up.",
    "ready": "The runner is ready.",
    "parked": "The runner keeps its weights and has given its KV memory back.",
    "draining": "The runner finishes its requests and takes no more.",
}


async def desired_state(session: AsyncSession, node_id: UUID) -> DesiredState:
    """All that the node must run, drain or stop. Raises Missing."""
    if await session.get(NodeTable, node_id) is None:
        raise Missing("node", str(node_id), "ebb nodes")
    query = (
        select(ReplicaTable, EndpointTable.name)
        .join(EndpointTable, EndpointTable.id == ReplicaTable.endpoint_id)
        .where(ReplicaTable.node_id == node_id, ReplicaTable.status.not_in(ENDED))
        .order_by(ReplicaTable.created_at, ReplicaTable.id)
    )
    replicas = tuple(
        DesiredReplica(
            str(row.id), name, row.generation, row.intent, msgspec.convert(row.spec, ReplicaSpec), str(row.endpoint_id)
        )
        for row, name in (await session.execute(query))
    )
    keys = tuple(await key_records(session))
    return DesiredState(hashlib.sha256(msgspec.json.encode((replicas, keys))).hexdigest()[:24], replicas, keys)


class ReportOrder:
    """Which report of each node was the last one taken: one that it has overtaken must not undo it. Kept by the process
    that answers; reports are rarely split between two, and then it is the comparison that holds."""

    def __init__(self) -> None:
        self._last: dict[UUID, tuple[int, int]] = {}

    def is_late(self, node_id: UUID, report: NodeReport) -> bool:
        """Whether a newer one of the same agent was taken. Ask while the node's row is locked."""
        mark = (report.epoch, report.sequence)
        if report.sequence and mark <= self._last.get(node_id, (0, 0)):
            return True
        self._last[node_id] = mark
        return False


async def take_report(session: AsyncSession, node_id: UUID, report: NodeReport, order: ReportOrder) -> int:
    """Brings rows in line with what the node says; how many changed. Raises Missing and StaleEpoch.

    Most reports say nothing new and lock nothing but the node. Where one does, the endpoints concerned are held in
    the order of their ids, and the comparison is made again on the rows as they are then.
    """
    node = await nodes.heard(session, node_id, report.epoch, report.memory_free_bytes)
    if order.is_late(node_id, report):
        store.STALE.labels("report").inc()
        return 0
    found = await _compare(session, node_id, report)
    strays = {change.id for change in found if isinstance(change, Stray)}
    if strays and await forgotten.take_back(session, node, [each for each in report.replicas if each.id in strays]):
        found = await _compare(session, node_id, report)
    changes = [change for change in found if not isinstance(change, Stray)]
    rows = await _rows(session, node_id)
    news = {rows[change.id].endpoint_id for change in changes if _is_news(rows[change.id], change)}
    for endpoint_id in sorted(news):
        held = await life.hold(session, endpoint_id)
        if held is not None:
            await _apply(session, held, node_id, report)
    return len(news)


async def lose_node(session: AsyncSession, node_id: UUID, reason: str) -> None:
    """The node is not heard: its replicas count as failed, and others will take their places."""
    query = select(ReplicaTable.endpoint_id).where(ReplicaTable.node_id == node_id, ReplicaTable.status.not_in(ENDED))
    for endpoint_id in sorted(set((await session.execute(query)).scalars())):
        held = await life.hold(session, endpoint_id)
        for replica in [] if held is None else [each for each in held.replicas if each.node_id == node_id]:
            assert held is not None
            wanted = replica.intent == "run"
            await life.end(session, held, replica, StartFailure(reason, False) if wanted else None)


async def replica_counts(session: AsyncSession) -> dict[UUID, int]:
    """How many replicas that have not ended each node has."""
    query = (
        select(ReplicaTable.node_id, func.count())
        .where(ReplicaTable.status.not_in(ENDED))
        .group_by(ReplicaTable.node_id)
    )
    return dict((await session.execute(query)).all())


async def _rows(session: AsyncSession, node_id: UUID) -> dict[str, ReplicaTable]:
    query = select(ReplicaTable).where(ReplicaTable.node_id == node_id, ReplicaTable.status.not_in(ENDED))
    return {str(row.id): row for row in (await session.execute(query)).scalars()}


async def _compare(session: AsyncSession, node_id: UUID, report: NodeReport) -> tuple[Change, ...]:
    now = await db_now(session)
    wanted = [
        Wanted(id, row.generation, row.status, row.intent, (now - row.created_at).total_seconds())
        for id, row in (await _rows(session, node_id)).items()
    ]
    return compare(wanted, report.replicas)


def _is_news(row: ReplicaTable, change: Change) -> bool:
    if not isinstance(change, Seen):
        return True
    return change.to is not None or _facts(row, change.observed) != _stored(row)


async def _apply(session: AsyncSession, held: Held, node_id: UUID, report: NodeReport) -> None:
    mine = {str(row.id): row for row in held.replicas if row.node_id == node_id}
    wanted = [
        Wanted(id, row.generation, row.status, row.intent, (held.now - row.created_at).total_seconds())
        for id, row in mine.items()
    ]
    for change in compare(wanted, report.replicas):
        if isinstance(change, Seen):
            await _see(session, held, mine[change.id], change)
        elif isinstance(change, Ended):
            replica = mine[change.id]
            if change.observed is not None:
                _note(replica, change.observed)
            await life.end(session, held, replica, change.failure)


async def _see(session: AsyncSession, held: Held, replica: ReplicaTable, change: Seen) -> None:
    moved = _facts(replica, change.observed)[:3] != _stored(replica)[:3]
    _note(replica, change.observed)
    if change.to is not None:
        # one that was let go keeps the reason for that to its end
        reason = PHASE_REASONS[change.to] if replica.intent == "run" else replica.reason
        await life.move(session, held, replica, change.to, reason)
    elif moved:
        # an adopted runner may have another address or token: gateways must hear of it
        await ring(session, "routes")


def _facts(row: ReplicaTable, seen: ObservedReplica) -> tuple[object, ...]:
    """What a report may change of a row, as it would be stored; an agent that does not know yet changes nothing."""
    spans = {**row.spans, **{name: round(seconds, 4) for name, seconds in seen.spans.items()}}
    own = {name: row.spans[name] for name in ("decide", "place", "ready") if name in row.spans}
    return (
        seen.url or row.url,
        seen.token or row.token,
        seen.slots or row.slots,
        seen.pid or row.pid,
        seen.max_model_len or row.max_model_len,
        row.memory_bytes if _close(seen.memory_bytes, row.memory_bytes) else seen.memory_bytes,
        {**spans, **own},
    )


def _stored(row: ReplicaTable) -> tuple[object, ...]:
    return row.url, row.token, row.slots, row.pid, row.max_model_len, row.memory_bytes, row.spans


def _note(row: ReplicaTable, seen: ObservedReplica) -> None:
    facts = _facts(row, seen)
    row.url, row.token, row.slots, row.pid, row.max_model_len, row.memory_bytes, row.spans = facts  # pyright: ignore[reportAttributeAccessIssue]


def _close(one: int, other: int) -> bool:
    """Resident memory flickers; a row is not written for less than a twentieth."""
    return abs(one - other) * 20 <= max(one, other)
