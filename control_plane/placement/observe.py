"""Reads what a round of placing needs from rows, in a fixed number of queries however large the fleet is. Changes
nothing, decides nothing."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import get_args
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog.quantization import DeviceKind
from control_plane.db.clock import db_now
from control_plane.endpoints import life, measured
from control_plane.endpoints.service import alive_replicas
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.states import ENDED, PROVEN_S, is_coming, serves
from control_plane.endpoints.tables import (
    CURRENT_REVISION,
    DemandTable,
    EndpointTable,
    GatewayTable,
    ReplicaTable,
    RevisionTable,
)
from control_plane.nodes.service import everyone
from control_plane.nodes.tables import NodeTable
from control_plane.placement.eviction import Resident, Standing, arrivals_per_s
from control_plane.placement.planner import DeviceView, Need, Spot
from control_plane.placement.rollout import Copy, Steps, next_steps
from control_plane.placement.rounds import WEIGHT, Want
from data_plane.wire.fleet import Device

KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)
HEARD_S = 12.0
"""A gateway that was silent for longer says nothing of what is idle."""
START_S = 3.0
"""What a start is taken to cost before one was seen."""
CACHED_DAYS = 7
PARKED_S = 900.0
"""So long is a parked replica kept, where nobody needs its memory sooner."""


@dataclass
class Askew:
    """An endpoint whose replicas are not as desired, and what brings them nearer."""

    id: UUID
    generation: int
    spec: RevisionSpec
    steps: Steps


@dataclass
class Picture:
    """All of it, at one time (Unix seconds)."""

    now: float = 0.0
    askew: list[Askew] = field(default_factory=list[Askew])
    wants: list[Want] = field(default_factory=list[Want])
    devices: list[DeviceView] = field(default_factory=list[DeviceView])
    residents: list[Resident] = field(default_factory=list[Resident])
    left: dict[UUID, str] = field(default_factory=dict[UUID, str])
    """The names of the nodes that are to be left."""


@dataclass(frozen=True)
class Work:
    """What gateways say of an endpoint: None where none is heard."""

    has_work: bool | None
    idle_s: float | None


_RUNS = (ReplicaTable.intent == "run") & ReplicaTable.status.not_in(ENDED)
_STAYS = (ReplicaTable.generation == EndpointTable.revision) & NodeTable.draining.is_(False)
_OLD = func.count(case((_RUNS & ~_STAYS, 1)))
_ASKEW = (
    select(EndpointTable.id)
    .outerjoin(ReplicaTable, (ReplicaTable.endpoint_id == EndpointTable.id) & _RUNS)
    .outerjoin(NodeTable, NodeTable.id == ReplicaTable.node_id)
    .group_by(EndpointTable.id)
    .having((func.count(case((_RUNS & _STAYS, 1))) != EndpointTable.desired) | (_OLD > 0))
    .order_by(EndpointTable.asked_at, EndpointTable.id)
)
_ENDPOINTS = (
    select(EndpointTable, RevisionTable.spec, func.clock_timestamp())
    .join(RevisionTable, CURRENT_REVISION)
    .where(EndpointTable.id.in_(bindparam("ids", expanding=True)))
)
_THERE = (
    select(ReplicaTable, EndpointTable)
    .join(EndpointTable, EndpointTable.id == ReplicaTable.endpoint_id)
    .where(ReplicaTable.status.not_in(ENDED))
    .order_by(ReplicaTable.id)
)


async def askew(session: AsyncSession) -> list[UUID]:
    """Endpoints whose current replicas are not as many as desired, or that still have others; longest waiting first."""
    return list((await session.execute(_ASKEW)).scalars())


async def is_unheard(session: AsyncSession, since: datetime) -> bool:
    """Whether some node has yet to say what it runs. One that stays silent counts as lost in the end."""
    query = select(NodeTable.id).where(NodeTable.status == "ready", NodeTable.last_seen_at < since).limit(1)
    return (await session.execute(query)).first() is not None


async def overdue(session: AsyncSession) -> list[tuple[UUID, UUID]]:
    """Parked replicas, with their endpoints, that have been parked for long, or are of a revision that is no more."""
    old = ReplicaTable.released_at < func.clock_timestamp() - timedelta(seconds=PARKED_S)
    query = (
        select(ReplicaTable.id, EndpointTable.id)
        .join(EndpointTable, EndpointTable.id == ReplicaTable.endpoint_id)
        .where(
            ReplicaTable.intent == "park",
            ReplicaTable.status.not_in(ENDED),
            old | (ReplicaTable.generation != EndpointTable.revision),
        )
    )
    return [(replica, endpoint) for replica, endpoint in await session.execute(query)]


async def picture(session: AsyncSession, ids: Sequence[UUID]) -> Picture:
    """What is to be done for the endpoints `ids`, and, where any of them lacks a replica, the fleet."""
    found = list(await session.execute(_ENDPOINTS, {"ids": list(ids)}))
    if not found:
        return Picture()
    moment = found[0][2]
    seen = Picture(moment.timestamp())
    rows = [(row, msgspec.convert(spec, RevisionSpec)) for row, spec, _ in found]
    alive = await alive_replicas(session, list(ids))
    nodes = await everyone(session)
    left = seen.left = {node.id: node.name for node in nodes if node.draining}
    for row, spec in rows:
        copies = [copy_of(replica, left, moment) for replica in alive[row.id]]
        steps = steps_of(row, copies)
        seen.askew.append(Askew(row.id, row.revision, spec, steps))
    lacking = {each.id: each.steps.start for each in seen.askew if each.steps.start}
    if lacking:
        await _read_fleet(session, seen, nodes, moment)
        wanted = [(row, spec) for row, spec in rows if row.id in lacking]
        excess = await measured.excess(session, {spec.artifact for _, spec in wanted})
        is_choice = len({device.node_id for device in seen.devices}) > 1
        cached = await _cached(session, {spec.artifact for _, spec in wanted}) if is_choice else {}
        by_id = {each.replica_id: each for each in seen.residents}
        for row, spec in wanted:
            seen.wants.append(_want(row, spec, lacking[row.id], alive[row.id], excess, cached, by_id))
    return seen


def copy_of(row: ReplicaTable, left: Mapping[UUID, str], now: datetime) -> Copy:
    """What rollout.py needs of a replica; `left`: the nodes that are drained."""
    facts = (str(row.id), row.generation, row.status, row.intent, row.created_at.timestamp())
    proven = row.status == "ready" and row.ready_at is not None and now - row.ready_at >= timedelta(seconds=PROVEN_S)
    return Copy(*facts, leaves=left.get(row.node_id), proven=proven)


def steps_of(endpoint: EndpointTable, copies: Sequence[Copy]) -> Steps:
    """What rollout.py says of an endpoint with these replicas, in the state that its circuit is in."""
    circuit = life.circuit_of(endpoint)
    may_start, is_probe = not circuit.is_open, circuit.is_half_open
    return next_steps(copies, endpoint.desired, endpoint.revision, may_start=may_start, is_probe=is_probe)


def need_of(spec: RevisionSpec, excess: dict[tuple[str, DeviceKind], int]) -> Need:
    """What a replica of it takes on each kind of device, by estimate and by what was measured."""
    return Need(spec.device, {kind: spec.estimate(kind, excess.get((spec.artifact, kind), 0)) for kind in KINDS})


async def fleet(session: AsyncSession) -> Picture:
    """The devices and all that holds memory on them, whoever wants what."""
    moment = await db_now(session)
    seen = Picture(moment.timestamp())
    await _read_fleet(session, seen, await everyone(session), moment)
    return seen


def _want(
    row: EndpointTable,
    spec: RevisionSpec,
    missing: int,
    alive: list[ReplicaTable],
    excess: dict[tuple[str, DeviceKind], int],
    cached: dict[str, set[str]],
    residents: dict[str, Resident],
) -> Want:
    views = [(replica, life.view(replica)) for replica in alive]
    own: dict[Spot, int] = defaultdict(int)
    for replica, view in views:
        if serves(view) or is_coming(view):
            own[(str(replica.node_id), replica.device)] += 1
    parked = [
        residents[str(replica.id)]
        for replica, _ in views
        if str(replica.id) in residents
        and residents[str(replica.id)].standing == "parked"
        and replica.generation == row.revision
    ]
    return Want(
        endpoint_id=str(row.id),
        endpoint=row.name,
        need=need_of(spec, excess),
        missing=missing,
        desired=row.desired,
        asked_at=(row.asked_at or row.created_at).timestamp(),
        priority=row.priority,
        is_first=not own,
        own=dict(own),
        cached=frozenset(cached.get(spec.artifact, ())),
        parked=tuple(parked),
    )


async def _cached(session: AsyncSession, artifacts: set[str]) -> dict[str, set[str]]:
    """Nodes that have run each artifact, and so have it."""
    digest = ReplicaTable.spec["artifact"].astext
    since = func.clock_timestamp() - timedelta(days=CACHED_DAYS)
    query = select(digest, ReplicaTable.node_id).where(digest.in_(artifacts), ReplicaTable.ready_at > since).distinct()
    found: dict[str, set[str]] = defaultdict(set)
    for artifact, node_id in await session.execute(query):
        found[artifact].add(str(node_id))
    return found


async def _read_fleet(session: AsyncSession, seen: Picture, there_are: list[NodeTable], moment: datetime) -> None:
    there = [(replica, endpoint) for replica, endpoint in await session.execute(_THERE)]
    work = await work_of(session, {endpoint.id for _, endpoint in there}, moment)
    above = _above_min([(replica, endpoint) for replica, endpoint in there])
    seen.residents = [
        _resident(replica, endpoint, work[endpoint.id], above[endpoint.id] > 0, moment) for replica, endpoint in there
    ]
    promised: dict[Spot, int] = defaultdict(int)
    busy: dict[Spot, int] = defaultdict(int)
    for each in seen.residents:
        promised[each.spot] += each.holds_bytes
        busy[each.spot] += each.standing == "coming" or (each.standing == "ready" and each.has_work is not False)
    nodes = [node for node in there_are if node.status == "ready" and not node.cordoned]
    # what came back from silence a moment ago gets nothing new yet, unless there is nothing else
    steady = [node for node in nodes if node.steady_at is None or node.steady_at <= moment]
    for node in steady or nodes:
        for device in msgspec.convert(node.devices, tuple[Device, ...]):
            name = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
            spot = (str(node.id), name)
            fact = (node.name, name, device.kind, device.memory_bytes, promised[spot])
            seen.devices.append(DeviceView(str(node.id), *fact, busy=busy[spot], cpus=node.cpus))


def _above_min(there: list[tuple[ReplicaTable, EndpointTable]]) -> dict[UUID, int]:
    """How many replicas each endpoint has beyond its minimum."""
    counts: dict[UUID, int] = {}
    for replica, endpoint in there:
        view = life.view(replica)
        counts.setdefault(endpoint.id, -endpoint.min_replicas)
        counts[endpoint.id] += serves(view) or is_coming(view)
    return counts


async def work_of(session: AsyncSession, ids: set[UUID], moment: datetime) -> dict[UUID, Work]:
    """What the gateways that are heard say of each endpoint."""
    if not ids:
        return {}
    since = moment - timedelta(seconds=HEARD_S)
    heard = select(GatewayTable.name).where(GatewayTable.heard_at > since)
    alive = set((await session.execute(heard)).scalars())
    query = select(
        DemandTable.endpoint_id,
        func.coalesce(
            func.sum(case((DemandTable.gateway.in_(alive), DemandTable.running + DemandTable.waiting), else_=0)), 0
        ),
        func.max(DemandTable.last_work_at),
    ).where(DemandTable.endpoint_id.in_(ids))
    rows = {
        each: (int(count), at) for each, count, at in await session.execute(query.group_by(DemandTable.endpoint_id))
    }
    found: dict[UUID, Work] = {}
    for endpoint_id in ids:
        count, at = rows.get(endpoint_id, (0, None))
        idle_s = None if at is None else max(0.0, (moment - at).total_seconds())
        found[endpoint_id] = Work(count > 0 if alive else None, idle_s)
    return found


def _resident(replica: ReplicaTable, endpoint: EndpointTable, work: Work, may_go: bool, moment: datetime) -> Resident:
    standing = _standing(replica)
    kv_bytes = int(replica.spec.get("kv_cache_bytes", 0))
    since = endpoint.last_ready_at if standing == "ready" and endpoint.last_ready_at else replica.ready_at
    return Resident(
        replica_id=str(replica.id),
        endpoint_id=str(endpoint.id),
        endpoint=endpoint.name,
        spot=(str(replica.node_id), replica.device),
        standing=standing,
        holds_bytes=replica.promised_bytes - (kv_bytes if standing == "parked" else 0),
        # the native decoder gives its cache back; on a GPU parking frees nothing yet
        kv_bytes=kv_bytes if replica.device == "cpu" else 0,
        has_work=work.has_work,
        ready_for_s=None if since is None else max(0.0, (moment - since).total_seconds()),
        idle_s=work.idle_s,
        arrivals_per_s=arrivals_per_s(work.idle_s),
        restore_s=endpoint.start_s or START_S,
        weight=WEIGHT.get(endpoint.priority, 1.0),
        may_go=may_go,
    )


def _standing(replica: ReplicaTable) -> Standing:
    if replica.intent in ("drain", "stop"):
        return "leaving"
    if replica.status == "parked":
        return "parked" if replica.intent == "park" else "coming"
    if replica.status == "ready":
        return "leaving" if replica.intent == "park" else "ready"
    return "coming"
