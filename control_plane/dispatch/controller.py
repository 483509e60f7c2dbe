"""The agents' side of the fleet: /internal/v1/nodes/{id}/desired and /report; and what people do with nodes,
/api/v1/nodes."""

from functools import partial
from typing import Annotated
from uuid import UUID

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import Bells
from control_plane.db.clock import db_now
from control_plane.db.long_poll import LONGEST_WAIT_S, until_changed
from control_plane.db.session import Database
from control_plane.dispatch import service
from control_plane.errors import StaleEpoch
from control_plane.nodes import metrics
from control_plane.nodes import service as nodes
from control_plane.nodes.lease import LeaseTerms
from control_plane.nodes.schemas import Node, Nodes, to_node
from control_plane.nodes.tables import NodeTable
from control_plane.settings import Settings
from control_plane.tenants.auth import ADMIN, AGENT, READ, AuthRequest, RequestSession, own_node, tenant_of
from data_plane.wire.fleet import DesiredState, NodeReport


class AgentsController(Controller):
    """What agents ask and report."""

    path = "/internal/v1/nodes"
    tags = ["internal"]  # noqa: RUF012

    @get("/{node_id:uuid}/desired", opt=AGENT, summary="A node's desired state (long poll)")
    async def desired(
        self,
        request: AuthRequest,
        database: NamedDependency[Database],
        bells: NamedDependency[Bells],
        settings: NamedDependency[Settings],
        node_id: FromPath[UUID],
        version: Annotated[str, QueryParameter(max_length=64)] = "",
        wait: Annotated[float, QueryParameter(ge=0, le=LONGEST_WAIT_S)] = 20.0,
        epoch: Annotated[int, QueryParameter(ge=0)] = 0,
    ) -> DesiredState:
        """As soon as its version is not `version`, or the same again after `wait` seconds. 409, 404: as for reports."""
        caller = own_node(request, node_id)
        topics = (f"node:{node_id}", "keys", nodes.PEERS)
        asked = epoch if caller is None else caller.epoch
        terms = LeaseTerms(settings.lease_s)
        read = partial(service.desired_state, node_id=node_id, terms=terms, epoch=asked)
        return await until_changed(database, bells, topics, read, version=version, wait_s=wait)

    @post("/{node_id:uuid}/report", opt=AGENT, status_code=204, summary="A node's report and heartbeat")
    async def report(
        self,
        request: AuthRequest,
        database: NamedDependency[Database],
        settings: NamedDependency[Settings],
        report_order: NamedDependency[service.ReportOrder],
        node_id: FromPath[UUID],
        data: JSONBody[NodeReport],
    ) -> None:
        """409: another agent of this name has registered. 404: register first."""
        caller = own_node(request, node_id)
        if caller is not None and caller.epoch != data.epoch:
            metrics.REFUSED.labels(metrics.STALE).inc()
            raise StaleEpoch(f"node {node_id}", caller.epoch)
        async with database.transaction() as session:
            taught = await service.take_report(session, node_id, data, LeaseTerms(settings.lease_s), report_order)
        if taught:
            async with database.transaction() as session:
                await service.learn(session, taught)


class NodesController(Controller):
    """Machines that run replicas."""

    path = "/api/v1/nodes"
    tags = ["nodes"]  # noqa: RUF012

    @get(opt=READ, summary="List nodes")
    async def list(self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings]) -> Nodes:
        """By name, lost ones too."""
        rows = await nodes.list_nodes(session, tenant_of(request))
        counts, now = await service.replica_counts(session), await db_now(session)
        return Nodes([to_node(row, counts.get(row.id, 0), now, settings.lease_s) for row in rows])

    @get("/{name:str}", opt=READ, summary="One node")
    async def show(
        self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings], name: FromPath[str]
    ) -> Node:
        """404: there is none of this name (any more)."""
        return await _shown(session, await nodes.named(session, tenant_of(request), name), settings)

    @post("/{name:str}/cordon", opt=ADMIN, status_code=200, summary="Place nothing new on a node")
    async def cordon(
        self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings], name: FromPath[str]
    ) -> Node:
        """What runs there goes on."""
        row = await nodes.named(session, tenant_of(request), name)
        await nodes.set_cordon(session, row, cordoned=True, draining=row.draining, by=request.auth.prefix)
        return await _shown(session, row, settings)

    @post("/{name:str}/uncordon", opt=ADMIN, status_code=200, summary="Let a node take replicas again")
    async def uncordon(
        self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings], name: FromPath[str]
    ) -> Node:
        """Ends a drain, too; what has moved stays where it is."""
        row = await nodes.named(session, tenant_of(request), name)
        await nodes.set_cordon(session, row, cordoned=False, draining=False, by=request.auth.prefix)
        return await _shown(session, row, settings)

    @post("/{name:str}/drain", opt=ADMIN, status_code=200, summary="Move a node's replicas elsewhere")
    async def drain(
        self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings], name: FromPath[str]
    ) -> Node:
        """Each is let go when its successor is ready. Without room elsewhere it stays, and its endpoint says why."""
        row = await nodes.named(session, tenant_of(request), name)
        await nodes.set_cordon(session, row, cordoned=True, draining=True, by=request.auth.prefix)
        return await _shown(session, row, settings)

    @delete("/{name:str}", opt=ADMIN, summary="Remove a node")
    async def remove(
        self, request: AuthRequest, session: RequestSession, name: FromPath[str], force: FromQuery[bool] = False
    ) -> None:
        """409 while it has replicas, unless `force`. Its credential is refused from then on."""
        await service.remove_node(session, tenant_of(request), name, force=force, by=request.auth.prefix)


async def _shown(session: AsyncSession, row: NodeTable, settings: Settings) -> Node:
    counts = await service.replica_counts(session)
    return to_node(row, counts.get(row.id, 0), await db_now(session), settings.lease_s)
