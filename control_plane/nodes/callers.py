"""Who calls with a join token or a node's credential: each opens a few addresses below /internal/v1/nodes and no other.
Whatever else is presented is a key. Knows no route."""

import hmac
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.clock import db_now
from control_plane.db.session import Database
from control_plane.errors import EbbError
from control_plane.nodes import credentials, joining, metrics
from control_plane.nodes.tables import NodeTable
from control_plane.tenants.auth import JoinCaller, KeyCache, NodeCaller
from data_plane.wire.errors import unauthenticated
from data_plane.wire.keys import KeyRecord, bearer, hash_secret, split_key

_EXPIRED = "credential_expired"


class Refused(EbbError):
    """401 to somebody who has proved to be known: the sentence says what has become of what was presented."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(401, message, type="authentication_error", code=code)


class Callers:
    """Tells callers by what they present. A credential is looked up each time, so a removed node is out at once."""

    def __init__(self, database: Database, keys: KeyCache) -> None:
        self._database = database
        self._keys = keys
        self._secret: str | None = None

    async def authenticate(self, authorization: str | None) -> KeyRecord:
        """The caller. Raises ApiError 401."""
        presented = bearer(authorization)
        if presented.startswith(credentials.PREFIX):
            return await self._node(presented)
        if presented.startswith(joining.PREFIX):
            return await self._machine(presented)
        return await self._keys.authenticate(authorization)

    async def _node(self, presented: str) -> NodeCaller:
        async with self._database.transaction() as session:
            if self._secret is None:
                self._secret = await joining.signing_secret(session)
            claims = credentials.verify(presented, self._secret)
            if claims is None:
                raise unauthenticated()
            now = (await db_now(session)).timestamp()
            row = await _standing(session, claims.node)
        if row is None or row[1] is not None:
            metrics.REFUSED.labels(metrics.REMOVED).inc()
            raise Refused(
                f"The node '{row[0] if row else claims.node}' was removed, and its credential with it. Join again with "
                "a token from 'ebb nodes token'.",
                "node_removed",
            )
        if now > claims.expires_at + credentials.RENEWABLE_S:
            raise Refused(
                f"The credential of node '{row[0]}' expired {(now - claims.expires_at) / 86_400:.0f} days ago, too long"
                f" to renew it. Remove the node with 'ebb nodes rm {row[0]}' and join again.",
                _EXPIRED,
            )
        return NodeCaller(
            id=claims.node, tenant=claims.tenant, prefix="", secret_sha256="", scopes=(),
            node_id=claims.node, epoch=claims.epoch, expired=now > claims.expires_at,
        )  # fmt: skip

    async def _machine(self, presented: str) -> JoinCaller:
        prefix, secret = split_key(presented)
        async with self._database.transaction() as session:
            row = await joining.find_token(session, prefix)
            now = await db_now(session)
        expected = row.secret_sha256 if row else hash_secret("")
        same = hmac.compare_digest(hash_secret(secret).encode(), expected.encode())
        if row is None or not same or not secret:
            raise unauthenticated()
        if row.used_at is not None:
            raise Refused(
                f"This join token was used at {row.used_at:%Y-%m-%d %H:%M:%S} UTC by node '{row.used_by}'; each works "
                "once. Make another with 'ebb nodes token'.",
                "join_token_used",
            )
        if now >= row.expires_at:
            raise Refused(
                f"This join token expired at {row.expires_at:%Y-%m-%d %H:%M:%S} UTC. Make another with 'ebb nodes "
                "token', with a longer --ttl if need be.",
                "join_token_expired",
            )
        return JoinCaller(
            id=prefix, tenant=str(row.tenant_id), prefix=prefix, secret_sha256="", scopes=(), token_id=str(row.id)
        )


async def _standing(session: AsyncSession, node_id: str) -> tuple[str, datetime | None] | None:
    query = select(NodeTable.name, NodeTable.removed_at).where(NodeTable.id == UUID(node_id))
    row = (await session.execute(query)).one_or_none()
    return None if row is None else (row[0], row[1])
