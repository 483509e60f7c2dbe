"""Makes, lists, changes and revokes tenants' API keys. Never commits; rings `keys` so that every port learns of it."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from msgspec import UNSET
from sqlalchemy import func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.base import TenantTable
from control_plane.db.bells import ring
from control_plane.errors import Conflict, Invalid, Missing
from control_plane.events.service import record
from control_plane.tenants.schemas import KeyChange
from control_plane.tenants.tables import KeyTable
from data_plane.wire.keys import NO_LIMITS, KeyLimits, KeyRecord, Priority, Scope, hash_secret, new_key, split_key

DEFAULT_TENANT = "default"
KEY = re.compile(r"ebb_[0-9a-f]{12}\.[A-Za-z0-9_-]{43}")
KEYS_CHANGED = ("keys", "routes")


async def ensure_tenant(session: AsyncSession, name: str = DEFAULT_TENANT) -> UUID:
    """The id of the tenant, which is made if it is missing."""
    await session.execute(insert(TenantTable).values(name=name).on_conflict_do_nothing())
    return (await session.execute(select(TenantTable.id).where(TenantTable.name == name))).scalar_one()


async def ensure_key(session: AsyncSession, *, name: str, scopes: Sequence[Scope], key: str | None) -> str:
    """A key of the default tenant that works: `key` if it does (or can be recorded), else a new one."""
    tenant_id = await ensure_tenant(session)
    if key is not None and KEY.fullmatch(key):
        prefix, secret = split_key(key)
        row = (await session.execute(select(KeyTable).where(KeyTable.prefix == prefix))).scalar_one_or_none()
        if row is None:
            await _insert(session, tenant_id, name, scopes, prefix, hash_secret(secret), None)
            return key
        if row.revoked_at is None and row.expires_at is None and row.secret_sha256 == hash_secret(secret):
            return key
    _, issued = await create_key(session, tenant_id, name=name, scopes=scopes)
    return issued


async def create_key(
    session: AsyncSession,
    tenant_id: UUID,
    *,
    name: str,
    scopes: Sequence[Scope],
    expires_in_s: int | None = None,
    priority: Priority = "normal",
    limits: KeyLimits = NO_LIMITS,
) -> tuple[KeyTable, str]:
    """The row, and the key itself, which is not stored."""
    if not name.strip() or not name.isprintable():
        raise Invalid("A key's name needs at least one visible character and no control characters.", "name")
    key, prefix, secret_sha256 = new_key()
    expires_at = None if expires_in_s is None else datetime.now(UTC) + timedelta(seconds=expires_in_s)
    row = await _insert(session, tenant_id, name, scopes, prefix, secret_sha256, expires_at, priority, limits)
    return row, key


async def _insert(
    session: AsyncSession,
    tenant_id: UUID,
    name: str,
    scopes: Sequence[Scope],
    prefix: str,
    secret_sha256: str,
    expires_at: datetime | None,
    priority: Priority = "normal",
    limits: KeyLimits = NO_LIMITS,
) -> KeyTable:
    row = KeyTable(
        tenant_id=tenant_id,
        name=name,
        prefix=prefix,
        secret_sha256=secret_sha256,
        scopes=sorted(set(scopes)),
        expires_at=expires_at,
        priority=priority,
        **msgspec.structs.asdict(limits),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await record(session, tenant_id, "key", prefix, "created", f"Key '{name}' was made.", {"scopes": list(row.scopes)})
    ring(session, *KEYS_CHANGED)
    return row


async def list_keys(session: AsyncSession, tenant_id: UUID) -> list[KeyTable]:
    """All keys of the tenant, revoked ones too, oldest first."""
    query = select(KeyTable).where(KeyTable.tenant_id == tenant_id).order_by(KeyTable.created_at, KeyTable.id)
    return list((await session.execute(query)).scalars())


async def change_key(session: AsyncSession, tenant_id: UUID, key_id: UUID, change: KeyChange) -> KeyTable:
    """Another class or other limits for a key that works. Raises Missing."""
    row = await _live_key(session, tenant_id, key_id)
    changed = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not UNSET}
    for name, value in changed.items():
        setattr(row, name, value)
    await session.flush()
    await record(session, tenant_id, "key", row.prefix, "changed", f"Key '{row.name}' was changed.", changed)
    ring(session, *KEYS_CHANGED)
    return row


async def _live_key(session: AsyncSession, tenant_id: UUID, key_id: UUID) -> KeyTable:
    query = select(KeyTable).where(
        KeyTable.tenant_id == tenant_id, KeyTable.id == key_id, KeyTable.revoked_at.is_(None)
    )
    row = (await session.execute(query.with_for_update())).scalar_one_or_none()
    if row is None:
        raise Missing("key", str(key_id), "ebb keys ls")
    return row


async def revoke_key(session: AsyncSession, tenant_id: UUID, key_id: UUID, *, by: UUID) -> None:
    """Revokes a key for good. Raises Missing, or Conflict for the tenant's last key that can administer."""
    admins = select(KeyTable).where(
        KeyTable.tenant_id == tenant_id, KeyTable.revoked_at.is_(None), KeyTable.scopes.contains(["admin"])
    )
    # locking them all keeps two requests from revoking each other's key at once
    rows = list((await session.execute(admins.order_by(KeyTable.id).with_for_update())).scalars())
    row = await _live_key(session, tenant_id, key_id)
    if "admin" in row.scopes and not any(r.id != key_id and r.expires_at is None for r in rows):
        raise Conflict(
            "This is the last key with the scope 'admin' that does not expire. Make another with "
            "'ebb keys add NAME --scope admin' before revoking it.",
            code="last_admin_key",
        )
    row.revoked_at = datetime.now(UTC)
    row.revoked_by = by
    await session.flush()
    await record(session, tenant_id, "key", row.prefix, "revoked", f"key '{row.name}' was revoked", {})
    ring(session, *KEYS_CHANGED)


_WORKING = (
    select(KeyTable)
    .where(
        KeyTable.revoked_at.is_(None),
        or_(KeyTable.expires_at.is_(None), KeyTable.expires_at > func.clock_timestamp()),
    )
    .order_by(KeyTable.created_at, KeyTable.id)
)


async def key_records(session: AsyncSession) -> list[KeyRecord]:
    """All keys that may work, of all tenants: what gateways, nodes and runners check against."""
    return [_to_record(row) for row in (await session.execute(_WORKING)).scalars()]


def _to_record(row: KeyTable) -> KeyRecord:
    scopes: list[Scope] = [scope for scope in ("infer", "read", "admin", "node") if scope in row.scopes]
    return KeyRecord(
        id=str(row.id),
        tenant=str(row.tenant_id),
        prefix=row.prefix,
        secret_sha256=row.secret_sha256,
        scopes=tuple(scopes),
        expires_at=None if row.expires_at is None else row.expires_at.timestamp(),
        priority=row.priority,
        limits=KeyLimits(row.max_concurrency, row.requests_per_minute, row.tokens_per_minute),
    )
