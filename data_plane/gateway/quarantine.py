"""Requests that two replicas died of: refused for some minutes, so that they cannot take down a fleet one by one.

Knows hashes and times, nothing of what is in a request.
"""

from hashlib import blake2b

FOR_S = 300.0
MOST = 1_000


def fingerprint(tenant: str, path: str, body: bytes) -> bytes:
    """Names what a tenant sent. Two tenants' same words have different names."""
    hashed = blake2b(f"{len(tenant)}:{tenant}{path}".encode(errors="surrogatepass"), digest_size=16)
    hashed.update(body)
    return hashed.digest()


class Quarantine:
    """Bounded: with too many the oldest goes, and would need two more replicas to come back."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, name: bytes, now: float) -> None:
        """Refuse it from now on."""
        self._until.pop(name, None)
        self._until[name] = now + FOR_S
        while len(self._until) > MOST:
            del self._until[next(iter(self._until))]

    def holds(self, name: bytes, now: float) -> bool:
        """Whether it is to be refused."""
        until = self._until.get(name)
        if until is not None and until <= now:
            del self._until[name]
            return False
        return until is not None
