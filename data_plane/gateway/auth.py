"""Who asks, and whether their key's scopes are enough. Knows nothing of what they ask for."""

import time

from data_plane.wire.errors import forbidden, unauthenticated
from data_plane.wire.keys import KeyRecord, KeyRing, Scope, bearer


class Auth:
    """The keys this gateway was last sent."""

    def __init__(self) -> None:
        self._ring = KeyRing()

    def update(self, keys: tuple[KeyRecord, ...]) -> None:
        """Replace all keys; a key that is not among them is refused from now on."""
        self._ring = KeyRing(keys)

    def identify(self, authorization: str | None) -> KeyRecord:
        """The key of an Authorization header. Raises 401 ApiError for every other header, in the same words."""
        record = self._ring.find(bearer(authorization), time.time())
        if record is None:
            raise unauthenticated()
        return record


def require(key: KeyRecord, *scopes: Scope) -> None:
    """Raises 403 ApiError unless the key has one of `scopes`."""
    for scope in scopes:
        if key.allows(scope):
            return
    raise forbidden(scopes[0])
