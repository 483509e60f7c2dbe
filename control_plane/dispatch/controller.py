"""The agents' side of the fleet: /internal/v1/nodes/{id}/desired and /report; and GET /api/v1/nodes."""

from functools import partial
from typing import Annotated
from uuid import UUID

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from control_plane.db.bells import Bells
from control_plane.db.long_poll import LONGEST_WAIT_S, until_changed
from control_plane.db.session import Database
from control_plane.dispatch import service
from control_plane.nodes import service as nodes
from control_plane.nodes.schemas import Nodes, to_node
from control_plane.tenants.auth import NODE, READ, AuthRequest, RequestSession, tenant_of
from data_plane.wire.fleet import DesiredState, NodeReport


class AgentsController(Controller):
    """What agents ask and report."""

    path = "/internal/v1/nodes"
    tags = ["internal"]  # noqa: RUF012

    @get("/{node_id:uuid}/desired", opt=NODE, summary="A node's desired state (long poll)")
    async def desired(
        self,
        database: NamedDependency[Database],
        bells: NamedDependency[Bells],
        node_id: FromPath[UUID],
        version: Annotated[str, QueryParameter(max_length=64)] = "",
        wait: Annotated[float, QueryParameter(ge=0, le=LONGEST_WAIT_S)] = 20.0,
    ) -> DesiredState:
        """As soon as its version is not `version`, or the same again after `wait` seconds."""
        topics = (f"node:{node_id}", "keys")
        read = partial(service.desired_state, node_id=node_id)
        return await until_changed(database, bells, topics, read, version=version, wait_s=wait)

    @post("/{node_id:uuid}/report", opt=NODE, status_code=204, summary="A node's report and heartbeat")
    async def report(
        self,
        session: RequestSession,
        report_order: NamedDependency[service.ReportOrder],
        node_id: FromPath[UUID],
        data: JSONBody[NodeReport],
    ) -> None:
        """409: another agent of this name has registered. 404: register first."""
        await service.take_report(session, node_id, data, report_order)


class NodesController(Controller):
    """Machines that run replicas."""

    path = "/api/v1/nodes"
    tags = ["nodes"]  # noqa: RUF012

    @get(opt=READ, summary="List nodes")
    async def list(self, request: AuthRequest, session: RequestSession) -> Nodes:
        """By name, lost ones too."""
        rows = await nodes.list_nodes(session, tenant_of(request))
        counts = await service.replica_counts(session)
        return Nodes([to_node(row, counts.get(row.id, 0)) for row in rows])
