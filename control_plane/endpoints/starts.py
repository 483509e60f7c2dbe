"""The ledger of starts: one row for each time that a replica comes up, from the decision to its first token.

Never commits. Knows what was measured, and nothing of how a replica starts.
"""

from datetime import datetime
from statistics import median
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Controller, get
from litestar.params import QueryParameter
from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog.tables import ArtifactTable
from control_plane.db.base import iso
from control_plane.endpoints import metrics
from control_plane.endpoints.tables import EndpointTable, ReplicaTable, StartTable
from control_plane.nodes.tables import NodeTable
from control_plane.tenants.auth import READ, AuthRequest, RequestSession, tenant_of

REMEMBERED = 9
"""Few enough to follow a change of the machine, enough that one slow start does not matter."""
MOST_LISTED = 500
WHOLE = "ready"
"""The span of a replica that is the sum of the others until it was ready."""
STARTING = "starting"


async def begin(
    session: AsyncSession, endpoint: EndpointTable, replica: ReplicaTable, tier: str, now: datetime
) -> None:
    """A replica was placed, or a parked one told to run. `tier`: parked, or cached until the node says otherwise."""
    artifact = str(replica.spec.get("artifact", ""))
    bytes_of = select(ArtifactTable.bytes).where(ArtifactTable.digest == artifact).limit(1).scalar_subquery()
    query = select(NodeTable.name, NodeTable.read_bytes_per_s, bytes_of).where(NodeTable.id == replica.node_id)
    with session.no_autoflush:
        node, speed, size = (await session.execute(query)).one()
    session.add(
        StartTable(
            tenant_id=endpoint.tenant_id,
            replica_id=replica.id,
            endpoint=endpoint.name,
            node=node,
            device=replica.device,
            artifact=artifact,
            tier=tier,
            outcome=STARTING,
            reason="",
            spans=dict(replica.spans),
            bytes=size or 0,
            # what is parked is in place: nothing of the weights is moved
            bound_s=None if not speed else 0.0 if tier == "parked" else (size or 0) / speed,
            created_at=now,
        )
    )


_LAST = (
    select(StartTable)
    .where(StartTable.replica_id == bindparam("replica_id"))
    .order_by(StartTable.created_at.desc())
    .limit(1)
)


async def of(session: AsyncSession, replica: ReplicaTable) -> StartTable | None:
    """The replica's last start."""
    with session.no_autoflush:
        return (await session.execute(_LAST, {"replica_id": replica.id})).scalar_one_or_none()


def note(start: StartTable | None, replica: ReplicaTable, now: datetime, reason: str = "") -> None:
    """Brings the replica's last start in line with it: its spans, and how the start ended once it has. What becomes of
    the replica later changes nothing."""
    if start is None or start.outcome not in (STARTING, "ready"):
        return
    before = dict(start.spans)
    start.spans = {name: seconds for name, seconds in replica.spans.items() if name != WHOLE}
    if start.spans.get("fetch", 0.0) > 0.0:
        start.tier = "remote"
    if start.outcome == STARTING and replica.status in ("ready", "stopped", "failed"):
        start.outcome = replica.status
        start.reason = reason
        start.ended_at = now
        if replica.status == "ready":
            start.total_s = replica.spans.get(WHOLE)
            before = {}
    if start.outcome == "ready":
        for name in start.spans.keys() - before.keys():
            metrics.START_SECONDS.labels(name).observe(start.spans[name])


async def learned_s(session: AsyncSession, replica: ReplicaTable, tier: str) -> float | None:
    """Seconds that a start like `replica`'s takes: the median of the last ones of its artifact from this tier on its
    kind of device, whichever endpoint they served; else of all on that kind. None where there was none."""
    kind = replica.device.partition(":")[0]
    like = [StartTable.outcome == "ready", StartTable.device.startswith(kind, autoescape=True)]
    # where a start from afar cannot be told from one of the node's own disk before it is done, they are alike
    like.append(StartTable.tier == tier if tier == "parked" else StartTable.tier != "parked")
    for closer in ([StartTable.artifact == replica.spec["artifact"]], []):
        query = select(StartTable.total_s).where(*like, *closer, StartTable.total_s.is_not(None))
        query = query.order_by(StartTable.created_at.desc()).limit(REMEMBERED)
        seconds = [each for each in (await session.execute(query)).scalars() if each is not None]
        if seconds:
            return median(seconds)
    return None


class Start(msgspec.Struct, frozen=True):
    """One start. `tier`: where its weights were (parked, cached, remote). `spans` are seconds by name, in the order of
    events; `total_s` from the decision to ready, null while it is not. `bound_s`: `bytes` at the speed with which the
    node reads its memory, null where that was not measured."""

    id: str
    replica: str
    endpoint: str
    node: str
    device: str
    artifact: str
    tier: str
    outcome: str
    reason: str
    spans: dict[str, float]
    total_s: float | None
    bytes: int
    bound_s: float | None
    created_at: str | None
    ended_at: str | None


class Starts(msgspec.Struct, frozen=True):
    """A list of starts."""

    items: list[Start]


async def list_starts(session: AsyncSession, tenant_id: UUID, endpoint: str | None, limit: int) -> list[Start]:
    """The newest first."""
    query = select(StartTable).where(StartTable.tenant_id == tenant_id).order_by(StartTable.created_at.desc())
    if endpoint is not None:
        query = query.where(StartTable.endpoint == endpoint)
    return [_told(row) for row in (await session.execute(query.limit(limit))).scalars()]


def _told(row: StartTable) -> Start:
    return Start(
        id=str(row.id),
        replica=str(row.replica_id),
        endpoint=row.endpoint,
        node=row.node,
        device=row.device,
        artifact=row.artifact,
        tier=row.tier,
        outcome=row.outcome,
        reason=row.reason,
        spans=row.spans,
        total_s=row.total_s,
        bytes=row.bytes,
        bound_s=row.bound_s,
        created_at=iso(row.created_at),
        ended_at=iso(row.ended_at),
    )


class StartsController(Controller):
    """The ledger of starts."""

    path = "/api/v1/starts"
    tags = ["starts"]  # noqa: RUF012

    @get(opt=READ, summary="List starts")
    async def list(
        self,
        request: AuthRequest,
        session: RequestSession,
        endpoint: Annotated[str | None, QueryParameter(max_length=200)] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=MOST_LISTED)] = 100,
    ) -> Starts:
        """The newest first."""
        return Starts(await list_starts(session, tenant_of(request), endpoint, limit))
