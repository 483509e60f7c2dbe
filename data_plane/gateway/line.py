"""The line of requests that wait for one endpoint: bounded, and in the order in which they are to be released. Pure.

The order is the engine's (engine/waiting.py): by rank, among equals the party that got least, and of each party the
oldest; but where an endpoint has a latency to hold, who is too late for it lets those go first who are not. Under a
burst the oldest first would make everybody late (Maurer, "Fail at Scale", 2015, tells of lines that are turned round
then). Knows nothing of time but that an earlier one is a smaller number, and nothing of what is waited for.
"""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Generic, Literal, TypeVar

from data_plane.gateway.fairness import Account, Claim

TURNS = 8
"""One release in so many goes to the oldest request, whatever its rank: so nothing waits for ever."""
SHARE = 3
"""A party may have this many times as much in line as is still free: one alone fills three quarters of it, and those
who come later always find room (dynamic thresholds: Choudhury and Hahne, 1998). Below half a line it binds nobody."""

Fault = Literal["full", "share"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that may wait for one endpoint."""

    requests: int
    bytes: int


@dataclass(eq=False, slots=True)
class Place:
    """One request's place in a line."""

    claim: Claim
    arrived: float
    size_bytes: int
    latest: float = field(default=inf, kw_only=True)
    """When its prompt must be begun for its answer to begin in time."""


P = TypeVar("P", bound=Place)
_Lane = tuple[int, Account]


def _arrived(place: Place) -> float:
    return place.arrived


def _first(lane: Sequence[Place], begins: float) -> int:
    """Of the oldest that is not too late; of the oldest where all are."""
    return next((at for at, place in enumerate(lane) if place.latest >= begins), 0)


class Line(Generic[P]):
    """Lanes of places, one for each rank and party, each by arrival."""

    def __init__(self, bounds: Bounds) -> None:
        self.size_bytes = 0
        self._bounds = bounds
        self._lanes: dict[_Lane, list[P]] = {}
        self._size = 0
        self._turn = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[P]:
        return (place for lane in self._lanes.values() for place in lane)

    def fault(self, place: Place) -> Fault | None:
        """Why there is no room for `place`: the line is full, or its party has its share of it already."""
        account, size_bytes = place.claim.account, place.size_bytes
        free, free_bytes = self._bounds.requests - self._size, self._bounds.bytes - self.size_bytes
        if free < 1 or free_bytes < size_bytes:
            return "full"
        if account.waiting + 1 > SHARE * free or account.waiting_bytes + size_bytes > SHARE * free_bytes:
            return "share"
        return None

    def push(self, place: P) -> None:
        """A new request, or one that was sent back and keeps the place its arrival gives it."""
        account = place.claim.account
        insort(self._lanes.setdefault((place.claim.rank, account), []), place, key=_arrived)
        self._book(place, 1)

    def remove(self, place: P) -> bool:
        """Take `place` out, wherever it stands; whether it stood here."""
        lane = self._lanes.get((place.claim.rank, place.claim.account), [])
        if place not in lane:
            return False
        lane.remove(place)
        if not lane:
            del self._lanes[place.claim.rank, place.claim.account]
        self._book(place, -1)
        return True

    def head(self, begins: float = -inf) -> P:
        """Who is next, if a prompt that is let go now is begun at `begins`. It stays next until it is taken, or is too
        late, unless one that goes before it comes. ValueError if none."""
        if self._turn == TURNS - 1:
            return self.oldest
        heads = [lane[_first(lane, begins)] for lane in self._lanes.values()]
        return min(heads, key=lambda one: (one.claim.rank, one.claim.account.served, one.arrived))

    @property
    def oldest(self) -> P:
        """Who has waited longest. ValueError if none."""
        return min((lane[0] for lane in self._lanes.values()), key=_arrived)

    def ahead(self, most: int, begins: float = -inf) -> list[P]:
        """The head, and behind it others of its rank and party, whom it costs nobody else to let go before it. The
        head alone where it is the oldest one's turn."""
        head = self.head(begins)
        if self._turn == TURNS - 1:
            return [head]
        lane = self._lanes[head.claim.rank, head.claim.account]
        first = _first(lane, begins)
        return lane[first : first + most]

    def take(self, place: P) -> None:
        """Let one of `ahead` go, and charge it to its account."""
        self.remove(place)
        place.claim.charge()
        self._turn = (self._turn + 1) % TURNS

    def pop(self, begins: float = -inf) -> P:
        """Let the head go."""
        place = self.head(begins)
        self.take(place)
        return place

    def _book(self, place: P, count: int) -> None:
        account = place.claim.account
        self._size += count
        self.size_bytes += count * place.size_bytes
        account.waiting += count
        account.waiting_bytes += count * place.size_bytes

    def check(self) -> None:
        """No lane is empty or out of order, and both sides of the books agree; AssertionError where they do not."""
        waiting: dict[Account, tuple[int, int]] = {}
        for (rank, account), lane in self._lanes.items():
            arrivals = [place.arrived for place in lane]
            assert arrivals and arrivals == sorted(arrivals), f"a lane of rank {rank} is out of order: {arrivals}"
            count, size_bytes = waiting.get(account, (0, 0))
            waiting[account] = (count + len(lane), size_bytes + sum(place.size_bytes for place in lane))
        for account, booked in waiting.items():
            assert (account.waiting, account.waiting_bytes) == booked, f"{account} waits with {booked}"
        totals = (sum(count for count, _ in waiting.values()), sum(size for _, size in waiting.values()))
        assert totals == (self._size, self.size_bytes), f"{totals} wait, counted were {(self._size, self.size_bytes)}"
