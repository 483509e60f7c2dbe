"""Tells nodes what is wanted of them, and takes in what they report. Never commits. Knows nothing of why a replica is
wanted or where another could go."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db import metrics as store
from control_plane.db.bells import ring
from control_plane.dispatch import forgotten
from control_plane.dispatch.diff import Change, Ended, Seen, Stray, Wanted, compare
from control_plane.endpoints import life, measured, starts
from control_plane.endpoints.life import Held
from control_plane.endpoints.states import ENDED
from control_plane.endpoints.tables import EndpointTable, ReplicaTable
from control_plane.errors import Conflict, InUse, StaleEpoch
from control_plane.nodes import service as nodes
from control_plane.nodes.lease import LeaseTerms
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
)
from data_plane.wire.peers import peer_token

PHASE_REASONS: dict[ReplicaPhase, str] = {
    "starting": "The node starts its runner.",
    "loading": "The runner loads its weights.",
    "warming": "The runner warms up.",
    "ready": "The runner is ready.",
    "parked": "The runner keeps its weights and has given its KV memory back.",
    "draining": "The runner finishes its requests and takes no more.",
}

_OF_NODE = select(ReplicaTable).where(ReplicaTable.node_id == bindparam("node_id"), ReplicaTable.status.not_in(ENDED))
_NAMED_OF_NODE = (
    select(ReplicaTable, EndpointTable.name)
    .join(EndpointTable, EndpointTable.id == ReplicaTable.endpoint_id)
    .where(ReplicaTable.node_id == bindparam("node_id"), ReplicaTable.status.not_in(ENDED))
    .order_by(ReplicaTable.created_at, ReplicaTable.id)
)


async def desired_state(session: AsyncSession, node_id: UUID, terms: LeaseTerms, epoch: int = 0) -> DesiredState:
    """All that the node must run, park, drain or stop. Raises Missing; and StaleEpoch where the asking agent's `epoch`
    (0: it did not say) is over."""
    everyone = {row.id: row for row in await nodes.everyone(session)}
    node = everyone.get(node_id)
    if node is None:
        raise nodes.missing(node_id)
    if 0 < epoch < node.epoch:
        raise StaleEpoch(f"node '{node.name}'", epoch)
    replicas = tuple(
        DesiredReplica(
            str(row.id), name, row.generation, row.intent, msgspec.convert(row.spec, ReplicaSpec), str(row.endpoint_id)
        )
        for row, name in (await session.execute(_NAMED_OF_NODE, {"node_id": node_id}))
    )
    keys = tuple(await key_records(session))
    peers = tuple(
        Peer(str(other.id), other.name, other.agent_url, peer_token(other.agent_token, str(node_id)))
        for other in everyone.values()
        if other.id != node_id and other.status != "joined"
    )
    told = (replicas, keys, peers, terms.lease_s)
    return DesiredState(hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:24], *told)


@dataclass(frozen=True)
class Taught:
    """A replica whose memory says something new, and perhaps its start (`tier`: where its weights were)."""

    replica: ReplicaTable
    tier: str = ""
    has_ended: bool = False


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


async def take_report(
    session: AsyncSession, node_id: UUID, report: NodeReport, terms: LeaseTerms, order: ReportOrder
) -> list[Taught]:
    """Brings rows in line with what the node says; what there is to `learn` of it, once that has committed. Raises
    Missing and StaleEpoch.

    Most reports say nothing new and lock nothing but the node. Where one does, the endpoints concerned are held in
    the order of their ids, and the comparison is made again on the rows as they are then.
    """
    node = await nodes.heard(session, node_id, report.epoch, report.memory_free_bytes, terms)
    if order.is_late(node_id, report):
        store.STALE.labels("report").inc()
        return []
    rows = await _rows(session, node_id)
    found = _compare(rows, node.last_seen_at, report)
    strays = {change.id for change in found if isinstance(change, Stray)}
    if strays and await forgotten.take_back(session, node, [each for each in report.replicas if each.id in strays]):
        rows = await _rows(session, node_id)
        found = _compare(rows, node.last_seen_at, report)
    changes = [change for change in found if not isinstance(change, Stray)]
    news = {rows[change.id].endpoint_id for change in changes if _is_news(rows[change.id], change)}
    taught: list[Taught] = []
    for endpoint_id in sorted(news):
        held = await life.hold(session, endpoint_id)
        if held is not None:
            taught += await _apply(session, held, node_id, report)
    return taught


async def learn(session: AsyncSession, taught: list[Taught]) -> None:
    """What the next starts may expect. In a transaction of its own: requests wait for a replica that became ready, and
    not for this. In one order, first endpoints, then the rows that they share."""
    for one in sorted(taught, key=lambda one: one.replica.endpoint_id):
        if one.tier and (held := await life.hold(session, one.replica.endpoint_id)) is not None:
            held.endpoint.start_s = await starts.learned_s(session, one.replica, one.tier)
    for one in sorted(taught, key=lambda one: (one.replica.spec["artifact"], one.replica.device)):
        await measured.learn(session, one.replica, has_ended=one.has_ended)


async def lose_node(session: AsyncSession, node_id: UUID, reason: str) -> None:
    """The node is not heard: its replicas count as failed, and others will take their places."""
    query = select(ReplicaTable.endpoint_id).where(ReplicaTable.node_id == node_id, ReplicaTable.status.not_in(ENDED))
    for endpoint_id in sorted(set((await session.execute(query)).scalars())):
        held = await life.hold(session, endpoint_id)
        for replica in [] if held is None else [each for each in held.replicas if each.node_id == node_id]:
            assert held is not None
            wanted = replica.intent == "run"
            await life.end(session, held, replica, StartFailure(reason, False) if wanted else None)


async def remove_node(session: AsyncSession, tenant_id: UUID, name: str, *, force: bool, by: str) -> None:
    """The node is no more. Raises Missing; InUse while it has replicas, unless `force`: then they count as failed and
    others take their places at once; and Conflict for one that would come back by itself."""
    node = await nodes.named(session, tenant_id, name)
    count = (await replica_counts(session)).get(node.id, 0)
    if not node.joined and node.status == "ready":
        raise Conflict(
            f"The agent of node '{name}' runs, and came with a key instead of a join token: it would register again at"
            " once. Stop it first ('ebb down' on its machine).",
            code="node_has_key",
        )
    if count and not force:
        raise InUse(
            f"Node '{name}' still has {count} replica{'s' if count > 1 else ''}. Move them with 'ebb nodes drain "
            f"{name}', or remove it at once with --force: their requests are then cut off."
        )
    await lose_node(session, node.id, f"Node '{name}' was removed.")
    await nodes.remove(session, node, by)


async def replica_counts(session: AsyncSession) -> dict[UUID, int]:
    """How many replicas that have not ended each node has."""
    query = (
        select(ReplicaTable.node_id, func.count())
        .where(ReplicaTable.status.not_in(ENDED))
        .group_by(ReplicaTable.node_id)
    )
    return dict((await session.execute(query)).all())


async def _rows(session: AsyncSession, node_id: UUID) -> dict[str, ReplicaTable]:
    return {str(row.id): row for row in (await session.execute(_OF_NODE, {"node_id": node_id})).scalars()}


def _compare(rows: dict[str, ReplicaTable], now: datetime, report: NodeReport) -> tuple[Change, ...]:
    wanted = [
        Wanted(id, row.generation, row.status, row.intent, (now - row.created_at).total_seconds())
        for id, row in rows.items()
    ]
    return compare(wanted, report.replicas)


def _is_news(row: ReplicaTable, change: Change) -> bool:
    if not isinstance(change, Seen):
        return True
    return change.to is not None or _facts(row, change.observed) != _stored(row)


async def _apply(session: AsyncSession, held: Held, node_id: UUID, report: NodeReport) -> list[Taught]:
    taught: list[Taught] = []
    mine = {str(row.id): row for row in held.replicas if row.node_id == node_id}
    wanted = [
        Wanted(id, row.generation, row.status, row.intent, (held.now - row.created_at).total_seconds())
        for id, row in mine.items()
    ]
    for change in compare(wanted, report.replicas):
        replica = mine.get(change.id)
        if replica is None:
            continue
        if isinstance(change, Seen):
            tier = await _see(session, held, replica, change)
            taught += [Taught(replica, tier)] if replica.status == "ready" else []
        elif isinstance(change, Ended):
            if change.observed is not None:
                _note(replica, change.observed)
            await life.end(session, held, replica, change.failure)
            taught += [Taught(replica, has_ended=True)] if change.failure is None else []
    return taught


async def _see(session: AsyncSession, held: Held, replica: ReplicaTable, change: Seen) -> str:
    """The tier of the start that has just succeeded, empty where none has."""
    moved = _facts(replica, change.observed)[:3] != _stored(replica)[:3]
    is_told = "place" not in replica.spans or change.to is not None
    is_told = is_told or _facts(replica, change.observed)[-1] != replica.spans
    start = await starts.of(session, replica) if is_told else None
    if "place" not in replica.spans:
        began_at = replica.created_at if start is None else start.created_at
        way_s = (held.now - began_at).total_seconds() - (change.observed.for_s or 0.0)
        replica.spans = {**replica.spans, "place": round(max(0.0, way_s), 4)}
    before = replica.spans
    _note(replica, change.observed)
    if change.to is not None:
        # one that was let go keeps the reason for that to its end
        reason = PHASE_REASONS[change.to] if replica.intent == "run" else replica.reason
        await life.move(session, held, replica, change.to, reason, start)
        if change.to == "ready":
            return "cached" if start is None else start.tier
    elif replica.spans != before:
        starts.note(start, replica, held.now)
    if change.to is None and moved:
        # an adopted runner may have another address or token: gateways must hear of it
        ring(session, "routes")
    return ""


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
        _grown(row.peak_bytes, seen.peak_bytes),
        _grown(row.fixed_bytes, seen.fixed_bytes),
        {**spans, **own},
    )


def _stored(row: ReplicaTable) -> tuple[object, ...]:
    memory = row.memory_bytes, row.peak_bytes, row.fixed_bytes
    return row.url, row.token, row.slots, row.pid, row.max_model_len, *memory, row.spans


def _note(row: ReplicaTable, seen: ObservedReplica) -> None:
    facts = _facts(row, seen)
    row.url, row.token, row.slots, row.pid, row.max_model_len = facts[:5]  # pyright: ignore[reportAttributeAccessIssue]
    row.memory_bytes, row.peak_bytes, row.fixed_bytes, row.spans = facts[5:]  # pyright: ignore[reportAttributeAccessIssue]


def _grown(known: int, seen: int) -> int:
    """The most there ever was; growth of less than a fiftieth is not worth a write."""
    return seen if seen * 50 > known * 51 else known


def _close(one: int, other: int) -> bool:
    """Resident memory flickers; a row is not written for less than a twentieth."""
    return abs(one - other) * 20 <= max(one, other)
