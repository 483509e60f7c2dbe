"""What the REST API takes and gives for API keys."""

from typing import Annotated

import msgspec

from control_plane.db.base import iso
from control_plane.tenants.tables import KeyTable
from data_plane.wire.keys import Scope

MAX_EXPIRY_S = 10 * 366 * 86400


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """A key to make. `expires_in_s`: seconds from now; none: it does not expire."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=8)]
    expires_in_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPIRY_S)] | None = None


class Key(msgspec.Struct, frozen=True):
    """A key as it is listed."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None


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
    )


def to_issued(row: KeyTable, key: str) -> IssuedKey:
    """The row with what its owner must keep."""
    shown = to_key(row)
    return IssuedKey(**msgspec.structs.asdict(shown), key=key)
