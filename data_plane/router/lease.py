"""Who has a request on which replica: borrowed and given back together, so that in-flight counts cannot leak.

Knows nothing of HTTP, and nothing of how a replica is chosen.
"""

from collections.abc import Callable
from types import TracebackType

from data_plane.wire.routes import ReplicaRoute


def _nothing() -> None:
    """Nobody wants to hear of it."""


class Lease:
    """One request's place on one replica. A context manager; giving back twice is the same as once."""

    def __init__(self, book: "InFlight", endpoint_id: str, replica: ReplicaRoute, reason: str) -> None:
        self.endpoint_id = endpoint_id
        self.replica = replica
        self.reason = reason
        self.prompt_tokens = self.matched_tokens = 0
        """About how long the prompt is, and how much of it should be cached there."""
        self.on_answer: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing
        """Hear of its first byte, and of its end (once)."""
        self._book = book

    def give_back(self) -> None:
        """Free the place."""
        on_end, self.on_end = self.on_end, _nothing
        on_end()
        self._book.give_back(self)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()


class InFlight:
    """The book of open leases. `on_return` is told the endpoint's id whenever a place became free."""

    def __init__(self, on_return: Callable[[str], None] = lambda _endpoint_id: None) -> None:
        self.on_return = on_return
        self._open: set[Lease] = set()
        self._by_replica: dict[str, int] = {}
        self._by_endpoint: dict[str, int] = {}

    def borrow(self, endpoint_id: str, replica: ReplicaRoute, reason: str = "") -> Lease:
        """Take a place on `replica`; there is always one: the runner queues what it cannot run yet."""
        lease = Lease(self, endpoint_id, replica, reason)
        self._open.add(lease)
        self._by_replica[replica.id] = self.of_replica(replica.id) + 1
        self._by_endpoint[endpoint_id] = self.of_endpoint(endpoint_id) + 1
        return lease

    def give_back(self, lease: Lease) -> None:
        """Close a lease and tell `on_return`."""
        if lease not in self._open:
            return
        self._open.remove(lease)
        _decrement(self._by_replica, lease.replica.id)
        _decrement(self._by_endpoint, lease.endpoint_id)
        self.on_return(lease.endpoint_id)

    def of_replica(self, replica_id: str) -> int:
        """Open leases on one replica."""
        return self._by_replica.get(replica_id, 0)

    def of_endpoint(self, endpoint_id: str) -> int:
        """Open leases on all replicas of one endpoint."""
        return self._by_endpoint.get(endpoint_id, 0)

    @property
    def total(self) -> int:
        """All open leases."""
        return len(self._open)

    def check(self) -> None:
        """Both sides of the books: leases open, counts by replica, counts by endpoint."""
        by_replica, by_endpoint = sum(self._by_replica.values()), sum(self._by_endpoint.values())
        assert by_replica == by_endpoint == len(self._open), (by_replica, by_endpoint, len(self._open))
        assert all(self._by_replica.values()) and all(self._by_endpoint.values()), "a count of zero was kept"


def _decrement(counts: dict[str, int], key: str) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
