"""Which replica holds which prefixes: what runners reported, and what was just sent to them and is not reported yet.

A prefix is a chain of chunk names (64-bit ints), each standing for its chunk and all before it. Knows nothing of text,
tokens or HTTP; time is an argument, in seconds of one monotonic clock.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MOST_PER_REPLICA = 131_072


@dataclass(eq=False, slots=True)
class _Replica:
    bit: int
    names: set[int] = field(default_factory=set[int])
    expected: dict[int, float] = field(default_factory=dict[int, float])


class PrefixIndex:
    """Chunk names by replica. What is held is prefix closed, so that a chain is matched by bisection."""

    def __init__(self, most_per_replica: int = MOST_PER_REPLICA) -> None:
        self._most = most_per_replica
        self._replicas: dict[str, _Replica] = {}
        self._expiring: deque[tuple[float, str, tuple[int, ...]]] = deque()

    def store(self, replica_id: str, names: Iterable[int]) -> None:
        """The replica reports that it holds these now."""
        replica = self._replica(replica_id)
        for name in names:
            replica.expected.pop(name, None)
            if len(replica.names) < self._most:
                replica.names.add(name)

    def evict(self, replica_id: str, names: Iterable[int]) -> None:
        """The replica reports that it no longer holds these. What is still expected of it stays expected."""
        if (replica := self._replicas.get(replica_id)) is not None:
            replica.names.difference_update(names)

    def replace(self, replica_id: str, names: Iterable[int]) -> None:
        """The replica reports all that it holds; what is still expected of it stays expected."""
        self._replica(replica_id).names.clear()
        self.store(replica_id, names)

    def forget(self, replica_id: str) -> None:
        """The replica is gone, or nothing that it said is to be believed any more."""
        self._replicas.pop(replica_id, None)

    def expect(self, replica_id: str, names: Sequence[int], until: float) -> None:
        """A request with this chain was sent there: it is taken as held until `until`, or for good once reported."""
        replica = self._replica(replica_id)
        for name in names:
            if name not in replica.names:
                replica.expected[name] = max(until, replica.expected.get(name, until))

    def match(self, chain: Sequence[int], now: float) -> dict[str, int]:
        """How many leading chunks of the chain each replica holds or is expected to; those with none are left out."""
        found: dict[str, int] = {}
        for replica_id, replica in self._replicas.items():
            held = 0
            for name in chain:
                if name not in replica.names and replica.expected.get(name, now) <= now:
                    break
                held += 1
            if held:
                found[replica_id] = held
        return found

    def known(self, replica_id: str) -> int:
        """How many chunks the replica is known to hold, without those only expected."""
        replica = self._replicas.get(replica_id)
        return len(replica.names) if replica else 0

    def _replica(self, replica_id: str) -> _Replica:
        return self._replicas.setdefault(replica_id, _Replica(0))
