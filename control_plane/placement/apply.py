"""Does what a round of placing decided, on rows that are held, and records each decision with what it was made from.
What has changed since it was decided is looked at again, and left for the next round. Never commits."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.decisions import service as decisions
from control_plane.decisions.service import Basis
from control_plane.endpoints import life
from control_plane.endpoints.life import Held
from control_plane.endpoints.memory import human
from control_plane.endpoints.specs import RevisionSpec, replica_spec
from control_plane.endpoints.tables import ReplicaTable, RevisionTable
from control_plane.placement.eviction import Eviction
from control_plane.placement.observe import copy_of, work_of
from control_plane.placement.planner import NoRoom
from control_plane.placement.rollout import SURPLUS, Steps, next_steps
from control_plane.placement.rounds import Evict, Place, Refuse, Step, Unpark, Wait
from data_plane.wire.fleet import StartFailure


def endpoint_of(step: Step) -> UUID:
    """Whose replica it is about."""
    return UUID(step.want.endpoint_id)


def still_lacks(held: Held, left: Mapping[UUID, str]) -> bool:
    """Whether a replica is still to be started. `left`: the nodes that are drained."""
    return _steps(held, left).start > 0


def _steps(held: Held, left: Mapping[UUID, str]) -> Steps:
    endpoint = held.endpoint
    copies = [copy_of(row, left) for row in held.replicas]
    return next_steps(copies, endpoint.desired, endpoint.revision, may_start=not held.circuit.is_open)


async def release(session: AsyncSession, held: Held, left: Mapping[UUID, str]) -> None:
    """Lets those go that are too many, or of another revision."""
    rows = {str(row.id): row for row in held.replicas}
    for replica_id, reason in _steps(held, left).release:
        row = rows[replica_id]
        # why fewer are desired says more than that they are
        why = held.endpoint.reason if reason is SURPLUS else reason
        if reason is SURPLUS and parks(held.endpoint.priority, row.device, row.status):
            row.released_at = held.now
            await life.park(session, held, row, why)
        else:
            await life.release(session, held, row, why)


def parks(priority: str, device: str, status: str) -> bool:
    """Whether a replica that is not needed is parked rather than stopped. On a processor its weights go on holding
    memory, and a runner in waiting starts it nearly as soon: so only where its endpoint is of high priority."""
    return priority == "high" and device == "cpu" and status == "ready"


async def place(session: AsyncSession, held: Held, step: Place) -> None:
    """A replica gets its place."""
    endpoint, choice = held.endpoint, step.placed
    query = select(RevisionTable.spec).where(
        RevisionTable.endpoint_id == endpoint.id, RevisionTable.number == endpoint.revision
    )
    spec = msgspec.convert((await session.execute(query)).scalar_one(), RevisionSpec)
    await life.place(session, held, _new_replica(held, spec, step), choice.node)
    reason = (
        f"Placed on {choice.device} of node {choice.node}: it needs {human(choice.estimate.total_bytes)} "
        f"({choice.estimate.parts()})."
    )
    outcome = {"node": choice.node, "device": choice.device, "bytes": choice.estimate.total_bytes}
    await _record(session, held, "place", reason, _planned(step), outcome)


async def unpark(session: AsyncSession, held: Held, step: Unpark) -> None:
    """A parked replica serves again."""
    parked = next((row for row in held.replicas if str(row.id) == step.replica_id), None)
    if parked is None or parked.status != "parked":
        return
    reason = "Its parked replica is woken: it has its weights."
    held.endpoint.obstacle = None
    parked.released_at = None
    parked.ordinal = _free_ordinal(held)
    await life.unpark(session, held, parked, reason)
    await _record(session, held, "place", reason, decisions.ASKED, {"unpark": step.replica_id})


async def refuse(session: AsyncSession, held: Held, step: Refuse) -> None:
    """It can never be placed: who waits is told so at once."""
    await life.fail_start(session, held, StartFailure(step.why.message, True))
    await life.settle(session, held, step.why.message)
    await _record(session, held, "place", step.why.message, decisions.ASKED, {"refused": step.why.message})


async def wait(session: AsyncSession, held: Held, step: Wait | Evict) -> None:
    """It waits for room; whoever asks why is told what holds it."""
    if isinstance(step, Evict):
        gone = ", ".join(f"'{each.endpoint}'" for each in step.victims)
        obstacle = f"Waiting for memory: {gone} makes room for it."
    else:
        ahead = f" {step.line} before it in line." if step.line else ""
        obstacle = f"{step.why.message} {step.reason}{ahead}"
    is_news = held.endpoint.obstacle is None
    if obstacle != held.endpoint.obstacle:
        await life.hinder(session, held, obstacle)
    if is_news and isinstance(step, Wait):
        await _record(session, held, "place", obstacle, decisions.ASKED, _no_room(step.why, step.line))


async def expire(session: AsyncSession, endpoint_id: UUID, replica_id: UUID) -> None:
    """A parked replica has been kept long enough."""
    held = await life.hold(session, endpoint_id)
    row = None if held is None else next((each for each in held.replicas if each.id == replica_id), None)
    if held is not None and row is not None and row.intent == "park":
        await life.release(session, held, row, "It was parked, and nobody has wanted it since.")


async def evict(session: AsyncSession, step: Evict, victim: Eviction) -> None:
    """One replica makes room, if it still may: it had no work, or has had its turn, and is above the minimum."""
    held = await life.hold(session, UUID(victim.endpoint_id))
    row = None if held is None else next((r for r in held.replicas if str(r.id) == victim.replica_id), None)
    if held is None or row is None or row.intent not in ("run", "park"):
        return
    endpoint = held.endpoint
    if row.intent == "run":
        work = (await work_of(session, {endpoint.id}, held.now))[endpoint.id]
        if endpoint.desired <= endpoint.min_replicas or (work.has_work is not False and victim.how != "turn"):
            return
    policy: decisions.Policy = "turn" if victim.how == "turn" else "eviction"
    inputs = {"residents": step.seen, "missing_bytes": step.missing_bytes, "is_first": step.want.is_first}
    outcome = {
        "victims": [each.replica_id for each in step.victims],
        "how": victim.how,
        "for": step.want.endpoint,
        "frees_bytes": victim.frees_bytes,
    }
    verb = {"park": "Parked", "stop": "Stopped", "turn": "It finishes what it runs and then stops"}[victim.how]
    reason = f"{verb} to make room: {step.reason}"
    await _record(session, held, "evict", reason, Basis(policy, inputs), outcome)
    endpoint.evicted_at = held.now
    if row.intent == "run":
        await life.set_desired(session, held, max(endpoint.min_replicas, endpoint.desired - 1), reason)
    if victim.how == "park":
        row.released_at = held.now
        await life.park(session, held, row, reason)
    else:
        await life.release(session, held, row, reason)


async def _record(
    session: AsyncSession, held: Held, kind: decisions.Kind, reason: str, basis: Basis, outcome: dict[str, Any]
) -> None:
    endpoint = held.endpoint
    await decisions.record(session, endpoint.tenant_id, kind, endpoint.name, reason, basis, outcome)


def _planned(step: Place) -> Basis:
    return Basis("planner", {"devices": step.seen, "need": step.want.need, "ranks": 1})


def _no_room(why: NoRoom, line: int) -> dict[str, Any]:
    return {"waits": why.message, "needs_bytes": why.needs_bytes, "free_bytes": why.free_bytes, "line": line}


def _free_ordinal(held: Held) -> int:
    taken = {row.ordinal for row in held.replicas if row.intent == "run" and row.generation == held.endpoint.revision}
    return next(ordinal for ordinal in range(len(taken) + 1) if ordinal not in taken)


def _new_replica(held: Held, spec: RevisionSpec, step: Place) -> ReplicaTable:
    choice = step.placed
    wanted = replica_spec(spec, choice.device, choice.estimate.kv_cache_bytes, step.threads)
    return ReplicaTable(
        id=uuid4(),
        endpoint_id=held.endpoint.id,
        generation=held.endpoint.revision,
        ordinal=_free_ordinal(held),
        node_id=UUID(choice.node_id),
        device=choice.device,
        status="placing",
        intent="run",
        reason="Placed.",
        spec=msgspec.to_builtins(wanted),
        promised_bytes=choice.estimate.total_bytes,
        memory_bytes=0,
        peak_bytes=0,
        fixed_bytes=0,
        slots=0,
        max_model_len=0,
        spans={},
        created_at=held.now,
    )
