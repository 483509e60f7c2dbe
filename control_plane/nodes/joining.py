"""How a machine becomes a node: a token that works once, then credentials that work for minutes. Never commits. Knows
nothing of replicas."""

import re
import secrets
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.clock import db_now
from control_plane.errors import AlreadyExists, Invalid, Missing
from control_plane.events.service import record
from control_plane.nodes.credentials import GOOD_FOR_S, Claims, sign
from control_plane.nodes.tables import JoinTokenTable, NodeTable, SigningKeyTable
from data_plane.wire.fleet import Joined, JoinRequest, NodeCredential
from data_plane.wire.keys import hash_secret
from data_plane.wire.names import NAME_RULE, is_name

PREFIX = "ebbj_"
TOKEN = re.compile(r"ebbj_[0-9a-f]{12}\.[A-Za-z0-9_-]{43}")
KEPT_DAYS = 7
"""An old token is remembered so long, to say why it does not work."""
_SIGNING = "nodes"


async def signing_secret(session: AsyncSession) -> str:
    """The secret that credentials are signed with, made when it is first wanted."""
    new = insert(SigningKeyTable).values(name=_SIGNING, secret=secrets.token_hex(32)).on_conflict_do_nothing()
    await session.execute(new)
    query = select(SigningKeyTable.secret).where(SigningKeyTable.name == _SIGNING)
    return (await session.execute(query)).scalar_one()


async def issue_token(session: AsyncSession, tenant_id: UUID, ttl_s: float) -> tuple[JoinTokenTable, str]:
    """The row, and the token itself, which is not stored."""
    now = await db_now(session)
    await session.execute(delete(JoinTokenTable).where(JoinTokenTable.expires_at < now - timedelta(days=KEPT_DAYS)))
    prefix, secret = PREFIX + secrets.token_hex(6), secrets.token_urlsafe(32)
    row = JoinTokenTable(
        tenant_id=tenant_id,
        prefix=prefix,
        secret_sha256=hash_secret(secret),
        expires_at=now + timedelta(seconds=ttl_s),
    )
    session.add(row)
    await session.flush()
    await record(session, tenant_id, "key", prefix, "created", "A token to join with was made.", {"ttl_s": ttl_s})
    return row, f"{prefix}.{secret}"


async def find_token(session: AsyncSession, prefix: str) -> JoinTokenTable | None:
    """A token's row, used and expired ones too, for as long as they are kept."""
    return (await session.execute(select(JoinTokenTable).where(JoinTokenTable.prefix == prefix))).scalar_one_or_none()


async def join(session: AsyncSession, token_id: UUID, wish: JoinRequest) -> Joined:
    """Uses the token up and makes the node. Raises Invalid, AlreadyExists (then the token still works), and Missing
    where somebody else has used it just now."""
    if not is_name(wish.name):
        raise Invalid(f"A node's name has {NAME_RULE}, and no '..'; this is '{wish.name[:80]}'.", "name")
    query = select(JoinTokenTable).where(JoinTokenTable.id == token_id, JoinTokenTable.used_at.is_(None))
    token = (await session.execute(query.with_for_update())).scalar_one_or_none()
    if token is None:
        raise Missing("unused join token", "just used", "ebb nodes token")
    node_id = await _make_node(session, token.tenant_id, wish)
    token.used_at, token.used_by = await db_now(session), wish.name
    await session.flush()
    reason = "A machine joined with a token; its agent starts."
    await record(session, token.tenant_id, "node", wish.name, "joined", reason, {"token": token.prefix})
    return Joined(str(node_id), wish.name, await credential(session, node_id, token.tenant_id, 0))


async def _make_node(session: AsyncSession, tenant_id: UUID, wish: JoinRequest) -> UUID:
    facts = {"status": "joined", "host": "", "agent_url": "", "agent_token": "", "version": "", "devices": []}
    new = insert(NodeTable).values(
        tenant_id=tenant_id, name=wish.name, epoch=0, machine=wish.machine[:200], joined=True, cpus=0,
        memory_bytes=0, memory_free_bytes=0, last_seen_at=func.clock_timestamp(), **facts,
    )  # fmt: skip
    made = (await session.execute(new.on_conflict_do_nothing().returning(NodeTable.id))).scalar_one_or_none()
    if made is None:
        remedy = (
            f"Join under another name with --name, or remove that node first with 'ebb nodes rm {wish.name}'; "
            "the token still works."
        )
        raise AlreadyExists("node", wish.name, remedy)
    return made


async def credential(session: AsyncSession, node_id: UUID, tenant_id: UUID, epoch: int) -> NodeCredential:
    """A credential of the node for this epoch."""
    expires_at = (await db_now(session)).timestamp() + GOOD_FOR_S
    claims = Claims(str(node_id), str(tenant_id), epoch, expires_at)
    return NodeCredential(sign(claims, await signing_secret(session)), GOOD_FOR_S)
