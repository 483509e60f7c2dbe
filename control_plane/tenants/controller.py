"""REST: /api/v1/keys."""

from uuid import UUID

from litestar import Controller, delete, get, patch, post
from litestar.params import FromPath, JSONBody

from control_plane.tenants import service
from control_plane.tenants.auth import ADMIN, READ, AuthRequest, RequestSession, tenant_of
from control_plane.tenants.schemas import IssuedKey, Key, KeyChange, Keys, NewKey, to_issued, to_key
from data_plane.wire.keys import KeyLimits


class KeysController(Controller):
    """API keys of the caller's tenant."""

    path = "/api/v1/keys"
    tags = ["keys"]  # noqa: RUF012

    @post(opt=ADMIN, summary="Make a key")
    async def create(self, request: AuthRequest, session: RequestSession, data: JSONBody[NewKey]) -> IssuedKey:
        """The answer holds the key itself, this once."""
        row, key = await service.create_key(
            session,
            tenant_of(request),
            name=data.name,
            scopes=data.scopes,
            expires_in_s=data.expires_in_s,
            priority=data.priority,
            limits=KeyLimits(data.max_concurrency, data.requests_per_minute, data.tokens_per_minute),
        )
        return to_issued(row, key)

    @get(opt=READ, summary="List keys")
    async def list(self, request: AuthRequest, session: RequestSession) -> Keys:
        """Revoked and expired keys too."""
        return Keys([to_key(row) for row in await service.list_keys(session, tenant_of(request))])

    @patch("/{key_id:uuid}", opt=ADMIN, summary="Change a key's class or limits")
    async def update(
        self, request: AuthRequest, session: RequestSession, key_id: FromPath[UUID], data: JSONBody[KeyChange]
    ) -> Key:
        """Holds everywhere within 5 s; requests in hand go on as they began."""
        return to_key(await service.change_key(session, tenant_of(request), key_id, data))

    @delete("/{key_id:uuid}", opt=ADMIN, summary="Revoke a key")
    async def revoke(self, request: AuthRequest, session: RequestSession, key_id: FromPath[UUID]) -> None:
        """It stops working everywhere within 5 s."""
        await service.revoke_key(session, tenant_of(request), key_id, by=UUID(request.auth.id))
