"""What may happen to an endpoint and its replicas, once its row is held. Each step leaves rows, an event and bells in
the caller's transaction. Knows nothing of why: callers decide, and say the reason."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import ring
from control_plane.db.clock import unix
from control_plane.decisions import service as decisions
from control_plane.endpoints import metrics, starts
from control_plane.endpoints.states import (
    ENDED,
    Circuit,
    ReplicaView,
    after_failure,
    endpoint_state,
    half_open,
    transition,
)
from control_plane.endpoints.tables import EndpointTable, ReplicaTable, StartTable
from control_plane.events.service import record
from data_plane.wire.fleet import ReplicaPhase, StartFailure

# Statements that are asked often are built once: building one takes as long as running it.
_LOCKED = (
    select(EndpointTable)
    .where(EndpointTable.id == bindparam("id"))
    .with_for_update(key_share=True)
    .execution_options(populate_existing=True)
)
_MOMENT = select(func.clock_timestamp().label("now")).subquery()
# the time of when the row is held, with the replicas as they are then
_NOW_WITH_REPLICAS = (
    select(_MOMENT.c.now, ReplicaTable)
    .outerjoin_from(
        _MOMENT, ReplicaTable, (ReplicaTable.endpoint_id == bindparam("id")) & ReplicaTable.status.not_in(ENDED)
    )
    .order_by(ReplicaTable.created_at)
    .execution_options(populate_existing=True)
)


@dataclass
class Held:
    """An endpoint's locked row with its replicas that have not ended. All writers of either hold the row first."""

    endpoint: EndpointTable
    replicas: list[ReplicaTable]
    now: datetime

    @property
    def circuit(self) -> Circuit:
        return Circuit(self.endpoint.failures, self.endpoint.opens, unix(self.endpoint.retry_at))

    def set_circuit(self, circuit: Circuit) -> None:
        """Stores it."""
        self.endpoint.failures = circuit.failures
        self.endpoint.opens = circuit.opens
        self.endpoint.retry_at = None if circuit.retry_at is None else datetime.fromtimestamp(circuit.retry_at, UTC)


async def hold(session: AsyncSession, endpoint_id: UUID) -> Held | None:
    """Locks the endpoint until the transaction ends. None where there is no such row (a deleted endpoint has one)."""
    locked = await session.execute(_LOCKED, {"id": endpoint_id})
    return await _with_replicas(session, locked.scalar_one_or_none())


async def peek(session: AsyncSession, endpoint_id: UUID) -> Held | None:
    """The same without the lock: for looking only."""
    return await _with_replicas(session, await session.get(EndpointTable, endpoint_id))


async def _with_replicas(session: AsyncSession, endpoint: EndpointTable | None) -> Held | None:
    if endpoint is None:
        return None
    rows = await session.execute(_NOW_WITH_REPLICAS, {"id": endpoint.id})
    found: list[tuple[datetime, ReplicaTable | None]] = [(now, replica) for now, replica in rows]
    return Held(endpoint, [replica for _, replica in found if replica is not None], found[0][0])


def view(replica: ReplicaTable) -> ReplicaView:
    """What the pure part needs of it."""
    return ReplicaView(replica.status, replica.intent)


async def settle(session: AsyncSession, held: Held, reason: str, *, is_progress: bool = False) -> None:
    """Derives the endpoint's state anew; a change becomes an event with `reason`. Tells gateways; `is_progress`: soon,
    since nothing changes for where they send requests."""
    endpoint = held.endpoint
    views = [view(replica) for replica in held.replicas]
    state = endpoint_state(endpoint.desired, views, failed=endpoint.retry_at is not None)
    if state != endpoint.state:
        data = {"from": endpoint.state, "to": state, "desired": endpoint.desired}
        endpoint.state, endpoint.reason = state, reason
        await record(session, endpoint.tenant_id, "endpoint", endpoint.name, state, reason, data)
    ring(session, "progress" if is_progress else "routes")


async def set_desired(
    session: AsyncSession, held: Held, desired: int, reason: str, basis: decisions.Basis = decisions.ASKED
) -> None:
    """Asks for another number of replicas; placement will see to it. `basis`: what that was decided from."""
    endpoint = held.endpoint
    if desired == endpoint.desired:
        return
    data = {"from": endpoint.desired, "to": desired}
    kind = decisions.kind_of(endpoint.desired, desired)
    await decisions.record(session, endpoint.tenant_id, kind, endpoint.name, reason, basis, data)
    if desired > endpoint.desired:
        endpoint.asked_at = held.now
    else:
        endpoint.obstacle = None
        endpoint.reason = reason
    is_more = desired > endpoint.desired
    endpoint.desired = desired
    await record(session, endpoint.tenant_id, "endpoint", endpoint.name, "scaled", reason, data)
    await settle(session, held, reason, is_progress=is_more)
    ring(session, "placement", "endpoints")


async def close_circuit(session: AsyncSession, held: Held, reason: str) -> None:
    """Forgets failures: something was changed that may have removed their cause."""
    held.set_circuit(Circuit())
    held.endpoint.obstacle = None
    await settle(session, held, reason)


async def try_again(session: AsyncSession, held: Held, reason: str) -> bool:
    """Half-opens an open circuit whose time has come. False while a start must not be tried."""
    probe = half_open(held.circuit, held.now.timestamp())
    if probe is None:
        return False
    if held.circuit.is_open:
        held.set_circuit(probe)
        data = {"opens": probe.opens}
        await record(session, held.endpoint.tenant_id, "endpoint", held.endpoint.name, "retrying", reason, data)
        ring(session, "placement")
    return True


async def fail_start(session: AsyncSession, held: Held, failure: StartFailure, lived_s: float | None = None) -> None:
    """Counts a failure; where that opens the circuit, waiters are told `failure` and nothing is started for a while."""
    endpoint = held.endpoint
    circuit = after_failure(held.circuit, fatal=failure.fatal, lived_s=lived_s, now=held.now.timestamp())
    opened = circuit.opens > endpoint.opens
    held.set_circuit(circuit)
    if opened:
        metrics.CIRCUITS_OPENED.inc()
        endpoint.reason = failure.message
        endpoint.obstacle = None
        if not any(replica.intent == "run" for replica in held.replicas):
            # who wanted the failed ones is told so; the next one to ask, after retry_at, tries again
            endpoint.desired = endpoint.min_replicas


async def move(
    session: AsyncSession,
    held: Held,
    replica: ReplicaTable,
    to: ReplicaPhase,
    reason: str,
    start: StartTable | None = None,
) -> None:
    """A replica that is still there reached another phase. `start`: its last one."""
    before = replica.status
    replica.status = transition(str(replica.id), replica.status, to)
    replica.reason = reason
    if to == "ready":
        _became_ready(held, replica, start)
    await _tell(session, held, replica, to, reason, {"from": before})
    await settle(session, held, _state_reason(to, reason), is_progress=to in ("starting", "loading", "warming"))


def _state_reason(to: ReplicaPhase, reason: str) -> str:
    return "A replica is ready." if to == "ready" else reason


def _became_ready(held: Held, replica: ReplicaTable, start: StartTable | None) -> None:
    endpoint = held.endpoint
    replica.ready_at = endpoint.last_ready_at = held.now
    began_at = replica.created_at if start is None else start.created_at
    asked_s = _seconds(began_at, held.now) + float(replica.spans.get("decide", 0.0))
    replica.spans = {**replica.spans, "ready": round(asked_s, 4)}
    starts.note(start, replica, held.now)
    metrics.COLD_STARTS.inc()
    metrics.COLD_START_SECONDS.observe(asked_s)


async def release(session: AsyncSession, held: Held, replica: ReplicaTable, reason: str) -> None:
    """No new requests for it: it drains if it serves, and is stopped if it never did."""
    if replica.intent not in ("run", "park"):
        return
    replica.intent = "drain" if replica.status == "ready" else "stop"
    replica.released_at = held.now
    replica.reason = reason
    await _tell(session, held, replica, "draining" if replica.intent == "drain" else "stopping", reason, {})
    await settle(session, held, reason)
    ring(session, f"node:{replica.node_id}")


async def park(session: AsyncSession, held: Held, replica: ReplicaTable, reason: str) -> None:
    """It keeps its process and its weights, and gives back its KV memory as soon as it has nothing to do."""
    if replica.intent != "run" or replica.status != "ready":
        return
    replica.intent = "park"
    replica.reason = reason
    await _tell(session, held, replica, "parking", reason, {})
    await settle(session, held, reason)
    ring(session, f"node:{replica.node_id}")


async def unpark(session: AsyncSession, held: Held, replica: ReplicaTable, reason: str) -> None:
    """A parked replica shall serve again. The caller has seen to it that its ordinal is free and its memory there."""
    if replica.intent != "park":
        return
    replica.intent = "run"
    replica.reason = reason
    replica.spans = _decided(held)
    await starts.begin(session, held.endpoint, replica, "parked", held.now)
    held.endpoint.start_s = await starts.learned_s(session, replica, "parked")
    await _tell(session, held, replica, "unparking", reason, {})
    await settle(session, held, reason, is_progress=True)
    ring(session, f"node:{replica.node_id}")


async def end(session: AsyncSession, held: Held, replica: ReplicaTable, failure: StartFailure | None) -> None:
    """The replica is no more. Without `failure` that was wanted."""
    before = replica.status
    lived_s = None if replica.ready_at is None else (held.now - replica.ready_at).total_seconds()
    replica.status = transition(str(replica.id), before, "stopped" if failure is None else "failed")
    replica.ended_at = held.now
    replica.token = None
    held.replicas.remove(replica)
    if failure is not None:
        replica.reason = failure.message
        metrics.FAILURES.labels("start" if lived_s is None else "crash").inc()
        if replica.intent == "run" and replica.generation == held.endpoint.revision:
            await fail_start(session, held, failure, lived_s)
    elif lived_s is not None:
        held.set_circuit(Circuit(retry_at=held.circuit.retry_at))
    starts.note(await starts.of(session, replica), replica, held.now, replica.reason)
    data: dict[str, object] = {"from": before, "fatal": failure is not None and failure.fatal}
    await _tell(session, held, replica, replica.status, replica.reason, data)
    await settle(session, held, replica.reason)
    ring(session, f"node:{replica.node_id}", "placement")


async def place(session: AsyncSession, held: Held, replica: ReplicaTable, node: str) -> None:
    """A new replica has its place: its node will hear of it when this commits."""
    endpoint = held.endpoint
    replica.spans = _decided(held)
    # a new endpoint learns from others that run the same, before its own first start
    endpoint.start_s = await starts.learned_s(session, replica, "cached") or endpoint.start_s
    endpoint.obstacle = None
    session.add(replica)
    await starts.begin(session, endpoint, replica, "cached", held.now)
    held.replicas.append(replica)
    reason = f"Placed on {replica.device} of node {node}."
    await _tell(session, held, replica, "placing", reason, {"node": node, "promised_bytes": replica.promised_bytes})
    await settle(session, held, reason, is_progress=True)
    ring(session, f"node:{replica.node_id}")


def _decided(held: Held) -> dict[str, Any]:
    """How long it took from the wish to here, where that says something."""
    endpoint = held.endpoint
    decide_s = 0.0 if endpoint.asked_at is None else _seconds(endpoint.asked_at, held.now)
    # a replacement, or one that waited for room, was not asked for just now: the wait is no time to decide
    return {"decide": decide_s} if decide_s < 60 and not endpoint.obstacle else {}


async def hinder(session: AsyncSession, held: Held, obstacle: str) -> None:
    """A wanted replica has no place yet: waiters go on waiting, and whoever looks sees why. The first obstacle is an
    event; that its numbers change while it lasts is none."""
    endpoint = held.endpoint
    if endpoint.obstacle is None:
        await record(session, endpoint.tenant_id, "endpoint", endpoint.name, "waiting", obstacle)
        ring(session, "progress")
    endpoint.obstacle = obstacle


async def _tell(
    session: AsyncSession, held: Held, replica: ReplicaTable, type: str, reason: str, data: dict[str, object]
) -> None:
    endpoint = held.endpoint
    about = {"replica": str(replica.id), "generation": replica.generation, **data}
    await record(session, endpoint.tenant_id, "replica", endpoint.name, type, reason, about)


def _seconds(start: datetime, end: datetime) -> float:
    return round(max(0.0, (end - start).total_seconds()), 4)
