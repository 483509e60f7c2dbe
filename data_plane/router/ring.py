"""Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): the same key goes to the same replica
wherever it is asked, and a change of replicas moves few keys. Pure; knows nothing of what a key stands for.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from math import ceil

VIRTUAL_NODES = 256
MOST_OVER_MEAN = 1.25


class Ring:
    """Points of all members around a circle of 64-bit hashes, `VIRTUAL_NODES` for each."""

    def __init__(self, members: tuple[str, ...]) -> None:
        points = sorted((_hash(f"{member}\0{number}"), member) for member in members for number in range(VIRTUAL_NODES))
        self._hashes = [point for point, _ in points]
        self._members = [member for _, member in points]

    def walk(self, key: str) -> Iterator[str]:
        """Every member once, in the order in which this key prefers them."""
        start = bisect_right(self._hashes, _hash(key))
        seen: set[str] = set()
        members = self._members
        for at in range(start - len(members), start):  # negative places count from the end: once around
            member = members[at]
            if member not in seen:
                seen.add(member)
                yield member

    def pick(self, key: str, loads: Mapping[str, int]) -> str:
        """The first member in the key's order whose load with this request is at most 1.25 times the mean.

        `loads` counts requests by member (a member that it lacks has none).
        """
        mean = (sum(loads.values()) + 1) / len(set(self._members))
        bound = ceil(MOST_OVER_MEAN * mean)
        return next(member for member in self.walk(key) if loads.get(member, 0) < bound)


@lru_cache(maxsize=64)
def ring_of(members: tuple[str, ...]) -> Ring:
    """The ring of these members (sorted, so that every gateway has the same). Made once for each set."""
    return Ring(members)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
