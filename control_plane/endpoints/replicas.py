"""Looks replicas up for people. Never commits, changes nothing."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.endpoints import service
from control_plane.endpoints.logs import LogSource
from control_plane.endpoints.schemas import Replica, to_replica
from control_plane.endpoints.states import ENDED
from control_plane.endpoints.tables import EndpointTable, ReplicaTable
from control_plane.errors import Missing
from control_plane.nodes.tables import NodeTable

MOST_LISTED = 200


async def list_replicas(session: AsyncSession, tenant_id: UUID, endpoint: str | None) -> list[Replica]:
    """The newest replicas, ended ones too, newest first."""
    query = (
        select(ReplicaTable, EndpointTable.name, NodeTable.name)
        .join(EndpointTable, EndpointTable.id == ReplicaTable.endpoint_id)
        .join(NodeTable, NodeTable.id == ReplicaTable.node_id)
        .where(EndpointTable.tenant_id == tenant_id)
        .order_by(ReplicaTable.created_at.desc())
        .limit(MOST_LISTED)
    )
    if endpoint is not None:
        found = await service.find(session, tenant_id, endpoint)
        query = query.where(ReplicaTable.endpoint_id == found.id)
    return [to_replica(row, name, node) for row, name, node in (await session.execute(query))]


async def log_sources(session: AsyncSession, tenant_id: UUID, endpoint: str) -> list[LogSource]:
    """The logs of all replicas that have not ended, newest last; where there is none, of the last that ended."""
    found = await service.find(session, tenant_id, endpoint)
    query = (
        select(ReplicaTable, NodeTable)
        .join(NodeTable, NodeTable.id == ReplicaTable.node_id)
        .where(ReplicaTable.endpoint_id == found.id)
        .order_by(ReplicaTable.created_at.desc())
        .limit(MOST_LISTED)
    )
    rows = (await session.execute(query)).all()
    alive = [(replica, node) for replica, node in rows if replica.status not in ENDED]
    return [_source(replica, node) for replica, node in reversed(alive or rows[:1])]


async def log_source(session: AsyncSession, tenant_id: UUID, replica_id: UUID) -> LogSource:
    """Raises Missing."""
    query = (
        select(ReplicaTable, NodeTable)
        .join(NodeTable, NodeTable.id == ReplicaTable.node_id)
        .join(EndpointTable, EndpointTable.id == ReplicaTable.endpoint_id)
        .where(ReplicaTable.id == replica_id, EndpointTable.tenant_id == tenant_id)
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        raise Missing("replica", str(replica_id), "ebb ps")
    return _source(*row)


def _source(replica: ReplicaTable, node: NodeTable) -> LogSource:
    label = f"replica {replica.id} on {node.name} ({replica.status})"
    return LogSource(str(replica.id), label, node.agent_url, node.agent_token)
