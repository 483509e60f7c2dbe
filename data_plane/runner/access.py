"""Who may do what on a runner's port: the launch's token everything, an API key what its scopes say.

Knows nothing of HTTP beyond the header's text.
"""

import hmac
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from data_plane.wire.errors import forbidden, unauthenticated
from data_plane.wire.keys import KeyRecord, KeyRing, Scope, bearer

log = structlog.get_logger()


class Caller(NamedTuple):
    """`id` is a key's, or `launch` for the launch's token; its holder speaks for any tenant, so `tenant` is None."""

    id: str
    tenant: str | None


class Access:
    """Checks `Authorization` headers against the launch's token and a file of keys that may change at any time."""

    def __init__(self, token: str, keys_path: Path | None) -> None:
        self._token = token.encode()
        self._keys_path = keys_path
        self._seen: tuple[int, int] | None = None
        self._ring = KeyRing()

    def check(self, header: str | None, scope: Scope | None, now: float) -> Caller:
        """Who it is; ApiError 401 or 403. A `scope` of None asks for the launch's token."""
        presented = bearer(header)
        if not presented.isascii():
            # a header may hold any bytes; no key does, and what cannot be encoded cannot be hashed
            raise unauthenticated()
        if presented and hmac.compare_digest(presented.encode(), self._token):
            return Caller("launch", None)
        self._refresh()
        record = self._ring.find(presented, now)
        if record is None:
            raise unauthenticated()
        if scope is None or not record.allows(scope):
            raise forbidden(scope or "node")
        return Caller(record.id, record.tenant)

    def _refresh(self) -> None:
        if self._keys_path is None:
            return
        try:
            stat = self._keys_path.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
            if seen == self._seen:
                return
            self._ring = KeyRing(msgspec.json.decode(self._keys_path.read_bytes(), type=list[KeyRecord]))
            self._seen = seen
        except FileNotFoundError:
            # the agent has not written it yet, or took it away: no key is good then
            self._ring, self._seen = KeyRing(), None
        except (OSError, msgspec.DecodeError) as error:
            # the agent replaces the file whole, so this is a fault of the disk: the keys known before stay good
            log.warning("keys cannot be read", path=str(self._keys_path), error=str(error))
