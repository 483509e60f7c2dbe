"""Tells nodes what is wanted of them, and takes in what they report. Never commits. Knows nothing of why a replica is
wanted or where another could go."""

import hashlib
from uuid import UUID

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import ring
from control_plane.db.clock import db_now
from control_plane.dispatch.diff import Change, Ended, Seen, Stray, Wanted, compare
from control_plane.endpoints import life, starts
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
    Peer,
    ReplicaPhase,
    ReplicaSpec,
    StartFailure,
    peer_token,
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
    node = await session.get(NodeTable, node_id)
    if node is None:
        raise Missing("node", str(node_id), "ebb nodes")
    query = (
        select(ReplicaTable, EndpointTable.name)
        .join(EndpointTable, EndpointTable.id == ReplicaTable.endpoint_id)
        .where(ReplicaTable.node_id == node_id, ReplicaTable.status.not_in(ENDED))
        .order_by(ReplicaTable.created_at, ReplicaTable.id)
    )
    replicas = tuple(
        DesiredReplica(str(row.id), name, row.generation, row.intent, msgspec.convert(row.spec, ReplicaSpec))
        for row, name in (await session.execute(query))
    )
    keys = tuple(await key_records(session))
    peers = await _peers(session, node)
    version = hashlib.sha256(msgspec.json.encode((replicas, keys, peers))).hexdigest()[:24]
    return DesiredState(version, replicas, keys, peers)


async def _peers(session: AsyncSession, node: NodeTable) -> tuple[Peer, ...]:
    """The tenant's other nodes, to get artifacts from."""
    query = select(NodeTable).where(
        NodeTable.tenant_id == node.tenant_id, NodeTable.id != node.id, NodeTable.status == "ready"
    )
    others = (await session.execute(query.order_by(NodeTable.name))).scalars()
    return tuple(Peer(each.name, each.agent_url, peer_token(each.agent_token)) for each in others)


async def take_report(session: AsyncSession, node_id: UUID, report: NodeReport) -> int:
    """Brings rows in line with what the node says; how many changed. Raises Missing and StaleEpoch.

    Most reports say nothing new and lock nothing but the node. Where one does, the endpoints concerned are held in
    the order of their ids, and the comparison is made again on the rows as they are then.
    """
    await nodes.heard(session, node_id, report.epoch, report.memory_free_bytes)
    changes = [change for change in await _compare(session, node_id, report) if not isinstance(change, Stray)]
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
    if "place" not in replica.spans:
        start = await starts.of(session, replica)
        began_at = replica.created_at if start is None else start.created_at
        way_s = (held.now - began_at).total_seconds() - (change.observed.for_s or 0.0)
        replica.spans = {**replica.spans, "place": round(max(0.0, way_s), 4)}
    before = replica.spans
    _note(replica, change.observed)
    if change.to is not None:
        # one that was let go keeps the reason for that to its end
        reason = PHASE_REASONS[change.to] if replica.intent == "run" else replica.reason
        await life.move(session, held, replica, change.to, reason)
    elif replica.spans != before:
        await starts.note(session, replica, held.now)
    if change.to is None and moved:
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
