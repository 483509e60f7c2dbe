"""What people do with endpoints: deploy, scale, wake, remove, look. Never commits. Knows nothing of nodes or loops: it
writes what is wanted, and rings."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog import artifacts
from control_plane.catalog.quantization import word
from control_plane.catalog.service import ready_model
from control_plane.catalog.tables import ModelTable
from control_plane.db.bells import ring
from control_plane.endpoints import life, metrics
from control_plane.endpoints.fit import kinds_of
from control_plane.endpoints.idle import idle_of
from control_plane.endpoints.life import Held
from control_plane.endpoints.pinning import known_devices, pin
from control_plane.endpoints.schemas import NewEndpoint, Scale
from control_plane.endpoints.slo import Slo, unmet
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.states import ENDED, is_coming, waking_phase
from control_plane.endpoints.tables import CURRENT_REVISION, EndpointTable, KeepaliveTable, ReplicaTable, RevisionTable
from control_plane.errors import Conflict, Invalid, Missing
from control_plane.events.service import record
from data_plane.wire.names import NAME_RULE, is_name
from data_plane.wire.routes import WakeAnswer

BY_HAND_S = 600.0
"""A start that a person asked for goes on this long though no request waits for it."""
LONGEST_PROMISE_S = 120.0
COMING_BACK_S = 10.0
"""A client that was told to come again may be so late."""

_ALIVE = (
    select(ReplicaTable)
    .where(ReplicaTable.endpoint_id.in_(bindparam("ids", expanding=True)), ReplicaTable.status.not_in(ENDED))
    .order_by(ReplicaTable.created_at)
)


async def deploy(session: AsyncSession, tenant_id: UUID, wanted: NewEndpoint) -> tuple[Held, bool]:
    """The endpoint, and whether it is new. An existing one gets a new revision if its spec differs. Raises Invalid,
    Missing (no such model) and Conflict (the model, or its artifact, is not ready)."""
    if not is_name(wanted.name):
        raise Invalid(f"An endpoint's name has {NAME_RULE}, and no '..'; this is '{wanted.name[:80]}'.", "name")
    _check_limits(wanted.min, wanted.max)
    _idle(wanted.idle_s)
    model = await ready_model(session, tenant_id, wanted.model)
    spec = await pin(session, tenant_id, wanted, model)
    unmeasured = await _check_slo(session, tenant_id, wanted.slo, spec)
    if unmeasured is not None:
        await record(session, tenant_id, "endpoint", wanted.name, "unmeasured", unmeasured)
    endpoint_id = await _find_id(session, tenant_id, wanted.name)
    held = None if endpoint_id is None else await life.hold(session, endpoint_id)
    if held is None or held.endpoint.deleted_at is not None:
        return await _create(session, tenant_id, wanted, model, spec), True
    await _revise(session, held, wanted, model, spec)
    return held, False


async def scale(session: AsyncSession, tenant_id: UUID, name: str, change: Scale) -> Held:
    """Other limits for the same revision; failures are forgotten. Raises Missing, Invalid."""
    held = await _hold_by_name(session, tenant_id, name)
    endpoint = held.endpoint
    low = endpoint.min_replicas if change.min is None else change.min
    high = endpoint.max_replicas if change.max is None else change.max
    _check_limits(low, high, "min" if change.max is None else "max")
    endpoint.min_replicas, endpoint.max_replicas = low, high
    if change.idle_s is not None:
        endpoint.idle_auto, endpoint.idle_s = _idle(change.idle_s)
    endpoint.priority = change.priority or endpoint.priority
    await _limits_changed(session, held, "The limits were changed by request.")
    return held


async def remove(session: AsyncSession, tenant_id: UUID, name: str) -> None:
    """Its routes are gone when this commits; its replicas drain and end. Raises Missing."""
    held = await _hold_by_name(session, tenant_id, name)
    reason = "The endpoint was removed by request."
    held.endpoint.deleted_at = held.now
    held.endpoint.model_id = None
    held.endpoint.min_replicas = 0
    held.endpoint.desired = 0
    held.endpoint.retry_at = held.endpoint.wake_at = None
    for replica in list(held.replicas):
        await life.release(session, held, replica, reason)
    await life.settle(session, held, reason)
    await record(session, tenant_id, "endpoint", name, "deleted", reason)
    ring(session, "placement", "endpoints")


async def wake_by_name(session: AsyncSession, tenant_id: UUID, name: str) -> Held:
    """The wake of a person. Raises Missing, and Conflict where it cannot be woken now."""
    held = await _hold_by_name(session, tenant_id, name)
    answer = await _wake(session, held, "Woken by request.", "rest", BY_HAND_S)
    if answer.state == "failed":
        raise Conflict(f"Endpoint '{name}' cannot start now: {answer.reason}", code="endpoint_failed")
    return held


async def sleep_by_name(session: AsyncSession, tenant_id: UUID, name: str) -> Held:
    """To zero now, whatever its idle time is. Raises Missing, and Conflict where it has to have replicas."""
    held = await _hold_by_name(session, tenant_id, name)
    least = held.endpoint.min_replicas
    if least > 0:
        message = f"Endpoint '{name}' has a min of {least}. Lower it with 'ebb scale {name} --min 0' for it to sleep."
        raise Conflict(message, code="has_min")
    held.endpoint.promised_until = None
    await life.set_desired(session, held, 0, "Put to sleep by request.")
    return held


async def wake_by_id(session: AsyncSession, endpoint_id: UUID, waiting: int, again_s: float = 0.0) -> WakeAnswer:
    """The wake of a gateway that holds `waiting` requests, or sent one away for `again_s` seconds (0: none).

    Raises Missing where the endpoint was deleted.
    """
    held = await life.hold(session, endpoint_id)
    if held is None or held.endpoint.deleted_at is not None:
        raise Missing("endpoint", str(endpoint_id), "ebb ps")
    reason = "A request is waiting." if waiting <= 1 else f"{waiting} requests are waiting."
    promised_s = min(again_s, LONGEST_PROMISE_S) + COMING_BACK_S if again_s > 0 else 0.0
    return await _wake(session, held, reason, "gateway", promised_s)


async def _wake(session: AsyncSession, held: Held, reason: str, source: str, promised_s: float) -> WakeAnswer:
    endpoint = held.endpoint
    if endpoint.max_replicas == 0:
        return WakeAnswer("failed", None, max_is_zero(endpoint.name))
    may_start = endpoint.state == "live" or await life.try_again(session, held, reason)
    if endpoint.state == "failed" and not may_start:
        return WakeAnswer("failed", None, endpoint.reason)
    endpoint.last_wake_at = held.now
    if promised_s:
        until = held.now + timedelta(seconds=promised_s)
        endpoint.promised_until = max(until, endpoint.promised_until or until)
    if endpoint.desired == 0:
        metrics.WAKES.labels(source).inc()
        await life.set_desired(session, held, 1, reason)
    elif endpoint.state == "failed":
        await life.settle(session, held, reason)
    views = [life.view(replica) for replica in held.replicas]
    if not any(is_coming(each) for each in views):
        ring(session, "placement")
    phase = waking_phase(views) if endpoint.state == "waking" else None
    return WakeAnswer(endpoint.state, phase, endpoint.obstacle or endpoint.reason)


def max_is_zero(name: str) -> str:
    """Why an endpoint with max 0 does not start."""
    return f"Endpoint '{name}' is scaled to at most 0 replicas. Raise it with 'ebb scale {name} --max 1'."


async def find(session: AsyncSession, tenant_id: UUID, name: str) -> EndpointTable:
    """Raises Missing."""
    row = None
    if is_name(name):
        query = select(EndpointTable).where(
            EndpointTable.tenant_id == tenant_id, EndpointTable.name == name, EndpointTable.deleted_at.is_(None)
        )
        row = (await session.execute(query)).scalar_one_or_none()
    if row is None:
        raise Missing("endpoint", name, "ebb ps")
    return row


async def list_endpoints(session: AsyncSession, tenant_id: UUID) -> list[EndpointTable]:
    """All that are not deleted, by name."""
    query = select(EndpointTable).where(EndpointTable.tenant_id == tenant_id, EndpointTable.deleted_at.is_(None))
    return list((await session.execute(query.order_by(EndpointTable.name))).scalars())


async def alive_replicas(session: AsyncSession, endpoint_ids: list[UUID]) -> dict[UUID, list[ReplicaTable]]:
    """The replicas that have not ended, by endpoint, oldest first."""
    found: dict[UUID, list[ReplicaTable]] = {endpoint_id: [] for endpoint_id in endpoint_ids}
    for row in (await session.execute(_ALIVE, {"ids": endpoint_ids})).scalars():
        found[row.endpoint_id].append(row)
    return found


async def idle_plans(session: AsyncSession, rows: list[EndpointTable]) -> dict[UUID, str]:
    """What was planned last for the idle times of those that sleep by themselves, in sentences."""
    ids = [row.id for row in rows if row.idle_auto]
    if not ids:
        return {}
    told = KeepaliveTable.plan["reason"].astext
    query = select(KeepaliveTable.endpoint_id, told).where(KeepaliveTable.endpoint_id.in_(ids), told.is_not(None))
    return {endpoint_id: reason for endpoint_id, reason in await session.execute(query)}


async def specs(session: AsyncSession, rows: list[EndpointTable]) -> dict[UUID, dict[str, Any]]:
    """The spec of each endpoint's current revision."""
    query = (
        select(EndpointTable.id, RevisionTable.spec)
        .join(RevisionTable, CURRENT_REVISION)
        .where(EndpointTable.id.in_([row.id for row in rows]))
    )
    return {endpoint_id: spec for endpoint_id, spec in (await session.execute(query))}


def _check_limits(low: int, high: int, param: str = "min") -> None:
    if low > high:
        raise Invalid(f"min is {low} and max is {high}: min must not be more than max. Lower min or raise max.", param)


async def _check_slo(session: AsyncSession, tenant_id: UUID, slo: Slo | None, spec: RevisionSpec) -> str | None:
    """Refuses a latency that the artifact was measured not to have, alone and at best, on the devices in question. Why
    it cannot be acted on, where nobody measured the artifact."""
    if slo is None or slo.is_any:
        return None
    speed = await artifacts.speed_of(session, spec.artifact)
    if not speed:
        return (
            f"Nobody measured the {word(spec.quantization)} artifact of '{spec.model}': the latency is not acted on, "
            "and replicas follow the requests in hand. One that 'ebb models quantize' makes is measured."
        )
    if kinds_of(spec.device, await known_devices(session, tenant_id))[0] != "cpu":
        return None  # speeds are measured where artifacts are made, which is a CPU: they say nothing of a GPU
    if fault := unmet(speed, slo):
        param, sentence = fault
        raise Invalid(
            f"{sentence}, or deploy a faster artifact of '{spec.model}' than its {word(spec.quantization)} one.",
            f"slo.{param}",
            code="slo_unmet",
        )
    return None


def _idle(given: float | str) -> tuple[bool, float]:
    try:
        return idle_of(given)
    except ValueError as error:
        raise Invalid(str(error), "idle_s") from error


def _stored(slo: Slo | None) -> dict[str, Any] | None:
    return None if slo is None or slo.is_any else msgspec.to_builtins(slo)


async def _find_id(session: AsyncSession, tenant_id: UUID, name: str) -> UUID | None:
    query = select(EndpointTable.id).where(
        EndpointTable.tenant_id == tenant_id, EndpointTable.name == name, EndpointTable.deleted_at.is_(None)
    )
    return (await session.execute(query)).scalar_one_or_none()


async def _hold_by_name(session: AsyncSession, tenant_id: UUID, name: str) -> Held:
    endpoint_id = await _find_id(session, tenant_id, name) if is_name(name) else None
    held = None if endpoint_id is None else await life.hold(session, endpoint_id)
    if held is None or held.endpoint.deleted_at is not None:
        raise Missing("endpoint", name, "ebb ps")
    return held


async def _create(
    session: AsyncSession, tenant_id: UUID, wanted: NewEndpoint, model: ModelTable, spec: RevisionSpec
) -> Held:
    reason = f"Deployed from model '{model.name}'."
    idle_auto, idle_s = _idle(wanted.idle_s)
    row = EndpointTable(
        tenant_id=tenant_id,
        name=wanted.name,
        model_id=model.id,
        model=model.name,
        revision=1,
        min_replicas=wanted.min,
        max_replicas=wanted.max,
        idle_s=idle_s,
        idle_auto=idle_auto,
        slo=_stored(wanted.slo),
        priority=wanted.priority,
        desired=0,
        state="zero",
        reason=reason,
        failures=0,
        opens=0,
    )
    session.add(row)
    try:
        await session.flush()
    except IntegrityError as error:
        message = f"Endpoint '{wanted.name}' was made by another request at the same time. Send this one again."
        raise Conflict(message, code="already_exists", param="name") from error
    session.add(RevisionTable(endpoint_id=row.id, number=1, spec=msgspec.to_builtins(spec)))
    await record(session, tenant_id, "endpoint", row.name, "created", reason, {"model": model.name})
    held = await life.hold(session, row.id)
    assert held is not None, "it was inserted in this transaction"
    await _limits_changed(session, held, reason)
    return held


async def _revise(
    session: AsyncSession, held: Held, wanted: NewEndpoint, model: ModelTable, spec: RevisionSpec
) -> None:
    endpoint = held.endpoint
    endpoint.min_replicas, endpoint.max_replicas = wanted.min, wanted.max
    endpoint.idle_auto, endpoint.idle_s = _idle(wanted.idle_s)
    endpoint.slo = _stored(wanted.slo)
    endpoint.priority = wanted.priority
    current = select(RevisionTable.spec).where(
        RevisionTable.endpoint_id == endpoint.id, RevisionTable.number == endpoint.revision
    )
    # as types, not as stored: an older version's revision lacks the fields that are at their defaults
    same = msgspec.convert((await session.execute(current)).scalar_one(), RevisionSpec) == spec
    reason = "Deployed again, unchanged but for its limits."
    if not same:
        endpoint.revision += 1
        endpoint.model_id, endpoint.model = model.id, model.name
        endpoint.start_s = None
        reason = f"Revision {endpoint.revision} was deployed from model '{model.name}'."
        session.add(RevisionTable(endpoint_id=endpoint.id, number=endpoint.revision, spec=msgspec.to_builtins(spec)))
        data = {"revision": endpoint.revision}
        await record(session, endpoint.tenant_id, "endpoint", endpoint.name, "revised", reason, data)
    await _limits_changed(session, held, reason)


async def _limits_changed(session: AsyncSession, held: Held, reason: str) -> None:
    """Min is met and max is kept at once; everything between is the autoscaler's."""
    endpoint = held.endpoint
    if not endpoint.idle_auto:
        endpoint.wake_at = None
        # its idle times are not followed from now on: the one that has begun would be taken for a long one
        gone = update(KeepaliveTable).where(KeepaliveTable.endpoint_id == endpoint.id).values(began_at=None)
        await session.execute(gone)
    desired = max(endpoint.min_replicas, min(endpoint.max_replicas, endpoint.desired))
    await life.close_circuit(session, held, reason)
    await life.set_desired(session, held, desired, reason)
    ring(session, "placement", "endpoints", "routes")
