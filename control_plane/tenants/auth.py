"""Who is calling, and whether they may. Every route names the scope it needs in its `opt` (READ, ADMIN, NODE, AGENT,
JOIN); one that names none needs `admin`. The caller is the KeyRecord at `request.auth`. Knows no route."""

import asyncio
import contextlib
import time
from typing import Any, TypeAlias
from uuid import UUID

import structlog
from litestar.connection import ASGIConnection, Request
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.handlers.base import BaseRouteHandler
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import Bells
from control_plane.db.session import Database
from control_plane.tenants.service import key_records
from data_plane.wire.errors import ApiError, forbidden, unauthenticated
from data_plane.wire.keys import KeyRecord, KeyRing, Scope, bearer

OPEN: dict[str, Any] = {"scope": "open"}
READ: dict[str, Any] = {"scope": "read"}
ADMIN: dict[str, Any] = {"scope": "admin"}
NODE: dict[str, Any] = {"scope": "node"}
AGENT: dict[str, Any] = {"scope": "agent"}
"""A key with scope node, or the credential of the node that the address is about."""
RENEW: dict[str, Any] = {"scope": "renew"}
"""A node's credential, and it may have expired."""
JOIN: dict[str, Any] = {"scope": "join"}
"""A join token."""
MACHINES = frozenset({"node", "agent", "renew", "join"})
"""Scopes of those who are no people: what they do is not put off for the sake of who looks."""
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
STALE_S = 5.0
MISS_RELOAD_S = 0.5
KEPT_S = 60.0
"""While the database does not answer, keys that were read so recently are taken for what they were."""
AGAIN_S = 1.0
"""How long they are, before the database is asked once more."""

log = structlog.get_logger("control_plane.auth")


class NodeCaller(KeyRecord, frozen=True):
    """A joined node, by its credential. It has no scope: only addresses with AGENT or RENEW are for it."""

    node_id: str = ""
    epoch: int = 0
    expired: bool = False


class JoinCaller(KeyRecord, frozen=True):
    """A machine that shows a join token."""

    token_id: str = ""


AuthRequest = Request[None, KeyRecord, State]
"""What a handler annotates its `request` with to know who calls."""

RequestSession: TypeAlias = NamedDependency[AsyncSession]
"""What a handler annotates its `session` with: one transaction, committed between the handler and the answer."""


def tenant_of(request: AuthRequest) -> UUID:
    """The caller's tenant: every query for a caller is limited to it."""
    return UUID(request.auth.tenant)


def own_node(request: AuthRequest, node_id: UUID) -> NodeCaller | None:
    """The calling node, or None where it is a key that may speak for any. Raises 403 where it is another node's."""
    caller = request.auth
    if not isinstance(caller, NodeCaller):
        return None
    if caller.node_id != str(node_id):
        raise ApiError(
            403, "This credential is that of another node.", type="permission_error", code="another_nodes_credential"
        )
    return caller


def require_scope(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Litestar guard for all routes: 403 unless the caller's key has the route's scope."""
    needed: str = handler.opt.get("scope", "admin")
    if needed == "open" or connection.scope.get("method") == "OPTIONS":  # OPTIONS only lists a path's methods
        return
    caller = connection.scope.get("auth")
    if not isinstance(caller, KeyRecord):
        raise unauthenticated()
    if needed in ("agent", "renew", "join"):
        return _require_machine(caller, needed)
    scopes: dict[str, Scope] = {"infer": "infer", "read": "read", "node": "node"}
    scope = scopes.get(needed, "admin")
    if not caller.allows(scope):
        raise forbidden(scope)


def _require_machine(caller: KeyRecord, needed: str) -> None:
    if needed == "join":
        fits = isinstance(caller, JoinCaller)
    elif isinstance(caller, NodeCaller):
        if caller.expired and needed == "agent":
            raise ApiError(
                401,
                "The node's credential has expired. Exchange it at /internal/v1/nodes/{id}/credential.",
                type="authentication_error",
                code="credential_expired",
            )
        fits = True
    else:
        fits = needed == "agent" and caller.allows("node")
    if not fits:
        raise forbidden("node")


class KeyCache:
    """All live keys, reloaded when a key changed anywhere, and at the latest after STALE_S when one is presented."""

    def __init__(self, database: Database, bells: Bells) -> None:
        self._database = database
        self._open = contextlib.ExitStack()
        self._listener = self._open.enter_context(bells.listen("keys"))
        self._ring = KeyRing()
        self._loaded_at = self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    def close(self) -> None:
        """Stops listening."""
        self._open.close()

    async def authenticate(self, authorization: str | None) -> KeyRecord:
        """The key's record. Raises ApiError 401, in the same words whatever is wrong with the key."""
        presented = bearer(authorization)
        await self._refresh(STALE_S)
        record = self._ring.find(presented, time.time())
        if record is None and presented:
            # made a moment ago through another process, perhaps: its bell may still be on the way
            await self._refresh(MISS_RELOAD_S)
            record = self._ring.find(presented, time.time())
        if record is None:
            raise unauthenticated()
        return record

    async def _refresh(self, max_age_s: float) -> None:
        if self._fresh(max_age_s):
            return
        async with self._lock:
            if self._fresh(max_age_s):
                return
            self._listener.take()
            asked_at = time.monotonic()
            try:
                async with self._database.transaction() as session:
                    records = await key_records(session)
            except Exception as error:  # drivers and pools fail in many ways: how long ago it worked is what counts
                if time.monotonic() - self._read_at > KEPT_S:
                    raise
                log.warning("keys_not_read", error=str(error).splitlines()[:1])
                self._loaded_at = time.monotonic() - STALE_S + AGAIN_S
                return
            self._ring = KeyRing(records)
            self._loaded_at = self._read_at = asked_at

    def _fresh(self, max_age_s: float) -> bool:
        if self._listener.take():
            self._loaded_at = float("-inf")
        return time.monotonic() - self._loaded_at <= max_age_s
