"""REST: how machines become nodes. /internal/v1/nodes/join, /register and /{id}/credential for agents, and
/api/v1/nodes/tokens for who lets them in. (What else there is of nodes concerns replicas: see dispatch.)"""

from uuid import UUID

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from control_plane.db.base import iso
from control_plane.nodes import joining, service
from control_plane.nodes.lease import LeaseTerms
from control_plane.nodes.schemas import IssuedToken, NewToken
from control_plane.settings import Settings
from control_plane.tenants.auth import (
    ADMIN,
    AGENT,
    JOIN,
    RENEW,
    AuthRequest,
    JoinCaller,
    NodeCaller,
    RequestSession,
    own_node,
    tenant_of,
)
from data_plane.wire.fleet import Joined, JoinRequest, NodeCredential, NodeRegistration, NodeWelcome


class TokensController(Controller):
    """Tokens to join with."""

    path = "/api/v1/nodes/tokens"
    tags = ["nodes"]  # noqa: RUF012

    @post(opt=ADMIN, summary="Make a token with which one machine may join")
    async def create(self, request: AuthRequest, session: RequestSession, data: JSONBody[NewToken]) -> IssuedToken:
        """The answer holds the token itself, this once."""
        row, token = await joining.issue_token(session, tenant_of(request), data.ttl_s)
        return IssuedToken(token, iso(row.expires_at) or "")


class RegistrationController(Controller):
    """Agents present their machines."""

    path = "/internal/v1/nodes"
    tags = ["internal"]  # noqa: RUF012

    @post("/join", opt=JOIN, status_code=200, summary="Become a node")
    async def join(self, request: AuthRequest, session: RequestSession, data: JSONBody[JoinRequest]) -> Joined:
        """Uses the token up. 409: the name is taken; the token still works."""
        assert isinstance(request.auth, JoinCaller)
        return await joining.join(session, UUID(request.auth.token_id), data)

    @post("/register", opt=AGENT, status_code=200, summary="Register a node's agent")
    async def register(
        self,
        request: AuthRequest,
        session: RequestSession,
        settings: NamedDependency[Settings],
        data: JSONBody[NodeRegistration],
    ) -> NodeWelcome:
        """The epoch in the answer must come with each report. 409: another machine's agent has the name."""
        caller, tenant_id = request.auth, tenant_of(request)
        own_id = UUID(caller.node_id) if isinstance(caller, NodeCaller) else None
        made = await service.register(session, tenant_id, data, LeaseTerms(settings.lease_s), own_id)
        credential = None
        if own_id is not None:
            credential = await joining.credential(session, made.node_id, tenant_id, made.epoch)
        return NodeWelcome(str(made.node_id), made.epoch, credential)

    @post("/{node_id:uuid}/credential", opt=RENEW, status_code=200, summary="Exchange a node's credential")
    async def renew(self, request: AuthRequest, session: RequestSession, node_id: FromPath[UUID]) -> NodeCredential:
        """A new one of the same epoch."""
        caller = own_node(request, node_id)
        assert caller is not None
        await service.present(session, node_id)
        return await joining.credential(session, node_id, tenant_of(request), caller.epoch)
