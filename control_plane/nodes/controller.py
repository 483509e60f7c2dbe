"""REST: /internal/v1/nodes/register, for agents. (GET /api/v1/nodes counts replicas, and so stands with dispatch.)"""

from litestar import Controller, post
from litestar.params import JSONBody

from control_plane.nodes import service
from control_plane.tenants.auth import NODE, AuthRequest, RequestSession, tenant_of
from data_plane.wire.fleet import NodeRegistration, NodeWelcome


class RegistrationController(Controller):
    """Agents present their machines."""

    path = "/internal/v1/nodes"
    tags = ["internal"]  # noqa: RUF012

    @post("/register", opt=NODE, status_code=200, summary="Register a node")
    async def register(
        self, request: AuthRequest, session: RequestSession, data: JSONBody[NodeRegistration]
    ) -> NodeWelcome:
        """The epoch in the answer must come with each report."""
        return await service.register(session, tenant_of(request), data)
