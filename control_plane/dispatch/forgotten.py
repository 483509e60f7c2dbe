"""Takes back what a node runs and the database has forgotten, because a standby took over that lacked the last writes
or a backup was restored. Never commits. Knows nothing of how that came about.

A replica's id is made with its row, and the row stays for days after its end: an id without a row was forgotten. What
is taken back is told as an event `taken_back`, what cannot be as `diverged`.
"""

from collections.abc import Sequence
from uuid import UUID

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog.tables import ArtifactTable, ModelTable
from control_plane.db import metrics
from control_plane.dispatch.diff import BEFORE_ENDING
from control_plane.endpoints import life
from control_plane.endpoints.idle import idle_of
from control_plane.endpoints.life import Held
from control_plane.endpoints.memory import estimate
from control_plane.endpoints.schemas import NewEndpoint
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.tables import EndpointTable, ReplicaTable, RevisionTable
from control_plane.events.service import record
from control_plane.nodes.tables import NodeTable
from data_plane.wire.fleet import DesiredReplica, Intent, ObservedReplica, ReplicaPhase, ReplicaSpec

INTENTS: dict[ReplicaPhase, Intent] = {"draining": "drain", "parked": "park"}


async def take_back(session: AsyncSession, node: NodeTable, strays: Sequence[ObservedReplica]) -> int:
    """Writes the rows of those `strays` that have none; the number of them. Its caller holds the node."""
    living = {seen.id: seen for seen in strays if seen.phase in BEFORE_ENDING and _uuid(seen.id)}
    query = select(ReplicaTable.id).where(ReplicaTable.id.in_([UUID(id) for id in living]))
    for known in (await session.execute(query)).scalars():
        del living[str(known)]
    taken = 0
    for seen in sorted(living.values(), key=lambda one: (one.wanted.endpoint_id if one.wanted else "", one.id)):
        held = None if seen.wanted is None else await _endpoint(session, node, seen.wanted)
        if held is None or seen.wanted is None:
            await _tell_lost(session, node, seen)
            continue
        await _revision(session, held, seen.wanted)
        await _adopt(session, held, node, seen, seen.wanted.spec)
        taken += 1
    return taken


async def _endpoint(session: AsyncSession, node: NodeTable, wanted: DesiredReplica) -> Held | None:
    """Its endpoint, made again where it was forgotten too. None where it was removed, or cannot be made again."""
    endpoint_id = _uuid(wanted.endpoint_id)
    if endpoint_id is None:
        return None
    held = await life.hold(session, endpoint_id)
    if held is not None:
        return None if held.endpoint.deleted_at is not None else held
    model = await _model(session, node.tenant_id, wanted.spec)
    taken = select(EndpointTable.id).where(
        EndpointTable.tenant_id == node.tenant_id,
        EndpointTable.name == wanted.endpoint,
        EndpointTable.deleted_at.is_(None),
    )
    if model is None or (await session.execute(taken)).first() is not None:
        return None
    defaults = NewEndpoint(wanted.endpoint, model[0].name)
    reason = (
        f"The database had forgotten it; node '{node.name}' still ran revision {wanted.generation}. Its limits are the "
        f"defaults now: deploy it again, or set them with 'ebb scale {wanted.endpoint}'."
    )
    idle_auto, idle_s = idle_of(defaults.idle_s)
    row = EndpointTable(
        id=endpoint_id, tenant_id=node.tenant_id, name=wanted.endpoint, model_id=model[0].id, model=model[0].name,
        revision=0, min_replicas=defaults.min, max_replicas=max(1, defaults.max), idle_auto=idle_auto, idle_s=idle_s,
        desired=0, state="zero", reason=reason, failures=0, opens=0,
    )  # fmt: skip
    session.add(row)
    await session.flush()
    metrics.DIVERGED.labels("endpoint").inc()
    await record(session, node.tenant_id, "endpoint", row.name, "taken_back", reason)
    return await life.hold(session, endpoint_id)


async def _revision(session: AsyncSession, held: Held, wanted: DesiredReplica) -> None:
    """Writes the revision that `wanted` is of, where it was forgotten: a generation is never handed out twice."""
    endpoint = held.endpoint
    if wanted.generation <= endpoint.revision:
        return
    model = await _model(session, endpoint.tenant_id, wanted.spec)
    before = select(RevisionTable.spec).where(
        RevisionTable.endpoint_id == endpoint.id, RevisionTable.number == endpoint.revision
    )
    known = (await session.execute(before)).scalar_one_or_none()
    if model is None and known is None:
        return
    spec = _spec(wanted.spec, model, None if known is None else msgspec.convert(known, RevisionSpec))
    session.add(RevisionTable(endpoint_id=endpoint.id, number=wanted.generation, spec=msgspec.to_builtins(spec)))
    endpoint.revision = wanted.generation
    if model is not None:
        endpoint.model_id, endpoint.model = model[0].id, model[0].name
    metrics.DIVERGED.labels("revision").inc()
    reason = f"The database had forgotten revision {wanted.generation}; it was made again from what a node runs."
    data = {"revision": wanted.generation}
    await record(session, endpoint.tenant_id, "endpoint", endpoint.name, "taken_back", reason, data)
    await session.flush()


def _spec(
    running: ReplicaSpec, model: tuple[ModelTable, ArtifactTable] | None, before: RevisionSpec | None
) -> RevisionSpec:
    """What a revision must have been for a replica to run this. Of an artifact that nobody knows any more, only the
    name is left: the revision before then stands in with its sizes."""
    own = {"context": running.max_model_len, "concurrency": running.max_num_seqs, "dtype": running.dtype}
    if model is None:
        assert before is not None, "its caller has one of them"
        return msgspec.structs.replace(before, **own)
    artifact = model[1]
    made_of = {
        "model": model[0].name, "artifact": artifact.digest, "artifact_bytes": artifact.bytes,
        "artifact_dtype": artifact.dtype, "kv_bytes_per_token": artifact.kv_bytes_per_token,
        "quantization": artifact.quantization,
    }  # fmt: skip
    if before is not None:
        return msgspec.structs.replace(before, **made_of, **own)
    kind = running.device.partition(":")[0]
    return msgspec.convert({**made_of, **own, "device": kind, "target": None}, RevisionSpec)


async def _adopt(
    session: AsyncSession, held: Held, node: NodeTable, seen: ObservedReplica, running: ReplicaSpec
) -> None:
    endpoint = held.endpoint
    intent = INTENTS.get(seen.phase, "run")
    taken = {row.ordinal for row in held.replicas if row.generation == seen.generation}
    reason = f"The database had forgotten it; node '{node.name}' still runs it."
    row = ReplicaTable(
        id=UUID(seen.id), endpoint_id=endpoint.id, generation=seen.generation,
        ordinal=next(ordinal for ordinal in range(len(taken) + 1) if ordinal not in taken),
        node_id=node.id, device=running.device, status=seen.phase, intent=intent, reason=reason,
        spec=msgspec.to_builtins(running), promised_bytes=await _promised(session, endpoint, running, seen),
        memory_bytes=seen.memory_bytes, url=seen.url, token=seen.token, pid=seen.pid, slots=seen.slots,
        max_model_len=seen.max_model_len, spans=dict(seen.spans),
        ready_at=held.now if seen.phase in ("ready", "parked") else None,
        released_at=None if intent == "run" else held.now, created_at=held.now,
    )  # fmt: skip
    session.add(row)
    await session.flush()
    held.replicas.append(row)
    metrics.DIVERGED.labels("replica").inc()
    data = {"replica": seen.id, "generation": seen.generation, "node": node.name}
    await record(session, endpoint.tenant_id, "replica", endpoint.name, "taken_back", reason, data)
    running_now = sum(each.intent == "run" and each.generation == endpoint.revision for each in held.replicas)
    if running_now > endpoint.desired:
        await life.set_desired(session, held, min(running_now, max(endpoint.max_replicas, endpoint.desired)), reason)
    await life.settle(session, held, reason)


async def _promised(session: AsyncSession, endpoint: EndpointTable, running: ReplicaSpec, seen: ObservedReplica) -> int:
    query = select(RevisionTable.spec).where(
        RevisionTable.endpoint_id == endpoint.id, RevisionTable.number == seen.generation
    )
    spec = (await session.execute(query)).scalar_one_or_none()
    if spec is None:
        return seen.memory_bytes
    size = msgspec.convert(spec, RevisionSpec).size
    kind = "cpu" if running.device == "cpu" else "cuda"
    needed = estimate(
        size, context=running.max_model_len, concurrency=running.max_num_seqs, dtype=running.dtype, kind=kind
    )
    return needed.total_bytes


async def _model(
    session: AsyncSession, tenant_id: UUID, running: ReplicaSpec
) -> tuple[ModelTable, ArtifactTable] | None:
    query = (
        select(ModelTable, ArtifactTable)
        .join(ArtifactTable, ArtifactTable.model_id == ModelTable.id)
        .where(ModelTable.tenant_id == tenant_id, ArtifactTable.digest == running.artifact)
        .order_by(ModelTable.name != running.model)
        .limit(1)
    )
    found = (await session.execute(query)).first()
    return None if found is None else (found[0], found[1])


async def _tell_lost(session: AsyncSession, node: NodeTable, seen: ObservedReplica) -> None:
    if seen.phase == "draining":
        return  # it was told when it was found, and is on its way out
    metrics.DIVERGED.labels("orphan").inc()
    what = "an endpoint" if seen.wanted is None else f"endpoint '{seen.wanted.endpoint}'"
    reason = (
        f"It runs replica {seen.id} of {what}, which the database does not know and cannot make again; it is stopped. "
        "Deploy it again if it is still wanted."
    )
    await record(session, node.tenant_id, "node", node.name, "diverged", reason, {"replica": seen.id})


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None  # not an id of ours
