"""API keys as every port checks them: `prefix.secret`, known by the secret's SHA-256. No I/O; time is an argument."""

import hashlib
import hmac
import secrets
from typing import Literal

import msgspec

Scope = Literal["infer", "read", "admin", "node"]
SCOPES: tuple[Scope, ...] = ("infer", "read", "admin", "node")
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

CLASS_WIDTH = 1_000_000
"""Ranks of one class: a request may put itself behind others of its class, and never before or behind the class."""
_CLASSES: dict[Priority, int] = {"high": -CLASS_WIDTH, "normal": 0, "low": CLASS_WIDTH}


class KeyLimits(msgspec.Struct, frozen=True):
    """What a key's requests may take; None is no limit. Per minute: a bucket that is full at first."""

    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


NO_LIMITS = KeyLimits()


class KeyRecord(msgspec.Struct, frozen=True):
    """A key without its secret. `expires_at` is Unix seconds; a revoked key has no record."""

    id: str
    tenant: str
    prefix: str
    secret_sha256: str
    scopes: tuple[Scope, ...]
    expires_at: float | None = None
    priority: Priority = "normal"
    limits: KeyLimits = NO_LIMITS

    def rank(self, wish: int | None) -> int:
        """The rank of a request (lower goes first): the key's class, lowered by what the request's `priority` asks for.

        A `priority` below 0, which would raise it, is taken for 0.
        """
        return _CLASSES[self.priority] + (max(0, min(CLASS_WIDTH - 1, wish)) if wish else 0)

    def allows(self, scope: Scope) -> bool:
        """`admin` includes `read` and `infer`; nothing else includes anything."""
        return scope in self.scopes or (scope in ("read", "infer") and "admin" in self.scopes)


def new_key() -> tuple[str, str, str]:
    """A fresh key: (what the user is shown once, its public prefix, the hex SHA-256 of its secret of 256 bits)."""
    prefix = "ebb_" + secrets.token_hex(6)
    secret = secrets.token_urlsafe(32)
    return f"{prefix}.{secret}", prefix, hash_secret(secret)


def hash_secret(secret: str) -> str:
    """SHA-256 in hexadecimal. The secret is random of 256 bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def split_key(presented: str) -> tuple[str, str]:
    """(prefix, secret); both empty strings where there is no dot."""
    prefix, dot, secret = presented.partition(".")
    return (prefix, secret) if dot else ("", "")


def bearer(header: str | None) -> str:
    """The token of an `Authorization: Bearer …` header, or an empty string."""
    kind, _, token = (header or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


_NOBODY: tuple[None, bytes] = (None, hash_secret("").encode())


class KeyRing:
    """Looks presented keys up among the records it was given, in constant time, also when there is no such key."""

    def __init__(self, records: list[KeyRecord] | tuple[KeyRecord, ...] = ()) -> None:
        # the digests as they are compared: a gateway does this with each request
        self._by_prefix = {record.prefix: (record, record.secret_sha256.encode()) for record in records}

    def find(self, presented: str, now: float) -> KeyRecord | None:
        """The record of `presented`, or None where it is unknown, wrong or expired at `now` (Unix seconds)."""
        prefix, secret = split_key(presented)
        record, expected = self._by_prefix.get(prefix, _NOBODY)
        same = hmac.compare_digest(hash_secret(secret).encode(), expected)
        if record is None or not same or not secret:
            return None
        if record.expires_at is not None and now >= record.expires_at:
            return None
        return record
