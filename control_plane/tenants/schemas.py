"""What the REST API takes and gives for API keys."""

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from control_plane.db.base import iso
from control_plane.tenants.tables import KeyTable
from data_plane.wire.keys import Priority, Scope

MAX_EXPIRY_S = 10 * 366 * 86400
Limit = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """A key to make. `expires_in_s`: seconds from now; none: it does not expire. A limit of none is no limit."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=8)]
    expires_in_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPIRY_S)] | None = None
    priority: Priority = "normal"
    max_concurrency: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None


class KeyChange(msgspec.Struct, forbid_unknown_fields=True):
    """What is to change of a key; what is left out stays, and a limit of null is taken away."""

    priority: Priority | UnsetType = UNSET
    max_concurrency: Limit | UnsetType | None = UNSET
    requests_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET


class Key(msgspec.Struct, frozen=True):
    """A key as it is listed."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    priority: str
    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None


class IssuedKey(Key, frozen=True):
    """A key just made: `key` is shown this once and is not stored."""

    key: str = ""


class Keys(msgspec.Struct, frozen=True):
    """A list of keys."""

    items: list[Key]


def to_key(row: KeyTable) -> Key:
    """The row without its hash."""
    return Key(
        id=str(row.id),
        name=row.name,
        prefix=row.prefix,
        scopes=list(row.scopes),
        created_at=iso(row.created_at),
        expires_at=iso(row.expires_at),
        revoked_at=iso(row.revoked_at),
        priority=row.priority,
        max_concurrency=row.max_concurrency,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
    )


def to_issued(row: KeyTable, key: str) -> IssuedKey:
    """The row with what its owner must keep."""
    shown = to_key(row)
    return IssuedKey(**msgspec.structs.asdict(shown), key=key)
