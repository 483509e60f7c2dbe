"""Which replica holds which prefixes: what runners reported, and what was just sent to them and is not reported yet.

A prefix is a chain of chunk names (64-bit ints), each standing for its chunk and all before it. Knows nothing of text,
tokens or HTTP; time is an argument, in seconds of one monotonic clock.

One dict maps a name to the set of replicas, as the bits of an int. What a replica holds is prefix closed (a runner
evicts the end of a chain before its beginning), so along a chain the sets only shrink, and where a set loses a replica
is found by bisection.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

MOST_PER_REPLICA = 131_072
"""Chunks known of one replica: 33 million characters. More is not learned, which costs hits and no memory."""

_SWEEP = 2_000
"""Names of a gone replica that one call tidies away: about 0.4 ms. All at once they would hold up every stream."""

_DEPTHS = 8
"""Different lengths that a match tells apart. Each costs a bisection, and only the longest can win."""

_MOST_GROUPS = 4_096

_MOST_TURNS = 65_536
"""Chunks of which it is known what came next: about as many requests are remembered, at 150 bytes each."""

_SEVERAL = -1
"""Comes next after a chunk that prompts went on from in different ways."""

_SLACK = 1_024
"""Names beyond twice the held ones that a replica's log may have before it is written anew."""


class Held(Mapping[str, int]):
    """Leading chunks of a chain by replica, and `longest`, those who hold most of it.

    `is_shared`: other prompts went on from there in other ways, so that it is likely what many begin with (a system
    prompt, tools) rather than one conversation of which this is the next turn. `lot` is a number that differs between
    prompts and is the same for one wherever it is asked; 0 where there is none.
    """

    __slots__ = ("_groups", "is_shared", "lot")

    def __init__(self, groups: Sequence[tuple[frozenset[str], int]] = (), lot: int = 0) -> None:
        self._groups = groups
        self.is_shared = False
        self.lot = lot

    @property
    def longest(self) -> frozenset[str]:
        """Ids of those who hold most."""
        return self._groups[0][0] if self._groups else frozenset()

    def of(self, replica_id: str) -> int:
        """Chunks that the replica holds. Most often asked of few: groups are not spread out by replica."""
        for ids, chunks in self._groups:
            if replica_id in ids:
                return chunks
        return 0

    def __getitem__(self, replica_id: str) -> int:
        if chunks := self.of(replica_id):
            return chunks
        raise KeyError(replica_id)

    def __iter__(self) -> Iterator[str]:
        return (replica_id for ids, _ in self._groups for replica_id in ids)

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self._groups)

    def __bool__(self) -> bool:
        return bool(self._groups)


@dataclass(eq=False, slots=True)
class _Replica:
    id: str
    bit: int
    held: int = 0
    log: "array[int]" = field(default_factory=lambda: array("Q"))
    """Every name reported as held, in order, evicted ones among them: what a sweep has to look at."""
    expected: dict[int, float] = field(default_factory=dict[int, float])
    """Until when a name counts as held that was sent and is not reported."""


class PrefixIndex:
    """Chunk names by replica, at most `most_per_replica` of each.

    `python -m data_plane.bench.choosing`, 64 replicas of 100,000 chunks, prompts of 2,048, two shared cores: matching
    20 us at p50 and 42 us at p99, with choosing 46 us and 74 us; 816 MiB where hardly any two replicas hold the same.
    """

    def __init__(self, most_per_replica: int = MOST_PER_REPLICA) -> None:
        self._most = most_per_replica
        self._masks: dict[int, int] = {}
        """Name to the bits of all who hold or are expected to hold it. Bits of gone replicas may still be set."""
        self._replicas: dict[str, _Replica] = {}
        self._by_place: list[_Replica | None] = []
        """By number of bit; None where the bit is free."""
        self._live = 0
        self._next: OrderedDict[int, int] = OrderedDict()
        """What followed on the last known chunk of a chain."""
        self._groups: dict[int, frozenset[str]] = {}
        self._gone: deque[_Replica] = deque()
        self._expiring: list[tuple[float, int, _Replica, list[int]]] = []
        self._pushed = 0

    def store(self, replica_id: str, names: Iterable[int]) -> None:
        """The replica reports that it holds these now."""
        replica, masks = self._replica(replica_id), self._masks
        bit, expected, log = replica.bit, replica.expected, replica.log
        room = self._most - replica.held
        for name in names:
            mask = masks.get(name, 0)
            if mask & bit and (not expected or expected.pop(name, None) is None):
                continue
            if room <= 0:
                self._clear(name, bit)
                continue
            room -= 1
            masks[name] = mask | bit if mask else bit
            log.append(name)
        replica.held = self._most - room
        self._tidy(replica)

    def evict(self, replica_id: str, names: Iterable[int]) -> None:
        """The replica reports that it no longer holds these. What is expected of it stays expected."""
        replica = self._replicas.get(replica_id)
        if replica is None:
            return
        masks, bit, expected = self._masks, replica.bit, replica.expected
        for name in names:
            if masks.get(name, 0) & bit and name not in expected:
                self._clear(name, bit)
                replica.held -= 1
        self._tidy(replica)

    def replace(self, replica_id: str, names: Iterable[int]) -> None:
        """The replica reports all that it holds. What is expected of it stays expected."""
        before = self._replicas.get(replica_id)
        expected = dict(before.expected) if before else {}
        self.forget(replica_id)
        self.store(replica_id, names)
        by_end: dict[float, list[int]] = {}
        for name, until in expected.items():
            by_end.setdefault(until, []).append(name)
        for until, some in by_end.items():
            self.expect(replica_id, some, until)

    def forget(self, replica_id: str) -> None:
        """The replica is gone, or nothing that it said is to be believed any more."""
        replica = self._replicas.pop(replica_id, None)
        if replica is not None:
            self._live &= ~replica.bit
            self._groups.clear()
            replica.log.extend(replica.expected)
            replica.expected.clear()
            self._gone.append(replica)

    def expect(self, replica_id: str, names: Sequence[int], until: float) -> None:
        """A request with this chain was sent there: it is taken as held until `until`, or for good once reported."""
        replica, masks = self._replica(replica_id), self._masks
        bit, expected = replica.bit, replica.expected
        new: list[int] = []
        for name in names[self._leading(names, bit, expected) :]:
            mask = masks.get(name, 0)
            if not mask & bit:
                if len(expected) >= self._most:
                    break
                masks[name] = mask | bit if mask else bit
                expected[name] = until
                new.append(name)
            elif expected.get(name, until) < until:
                expected[name] = until
        if new:
            self._push(until, replica, new)
        if self._gone:
            self._sweep()

    def match(self, chain: Sequence[int], now: float) -> Held:
        """How many leading chunks of the chain each replica holds or is expected to; those with none are left out.

        Exact for the `_DEPTHS` greatest different lengths; replicas that hold less get the least of theirs.
        """
        if self._expiring and self._expiring[0][0] <= now:
            self._expire(now)
        get = self._masks.get
        if not chain:
            return Held()
        groups: list[tuple[frozenset[str], int]] = []
        found = Held(groups, chain[-1])
        rest = get(chain[0], 0) & self._live
        high, depths = len(chain), _DEPTHS
        while rest:
            # find the last chunk that one of the rest holds: `low` is such a chunk, and no chunk from `high` on is
            low = 0
            while high - low > 1:
                middle = (low + high) >> 1
                if get(chain[middle], 0) & rest:
                    low = middle
                else:
                    high = middle
            deepest = get(chain[low], 0) & rest
            groups.append((self._ids(deepest), high))
            rest ^= deepest
            depths -= 1
            if not depths and rest:
                groups.append((self._ids(rest), self._common(chain, high, rest)))
                break
        if groups and (longest := groups[0][1]) < len(chain):
            found.is_shared = self._is_left(chain[longest - 1], chain[longest])
        return found

    def _common(self, chain: Sequence[int], high: int, bits: int) -> int:
        """How many leading chunks all of these hold."""
        get, low = self._masks.get, 0
        while high - low > 1:
            middle = (low + high) >> 1
            if get(chain[middle], 0) & bits == bits:
                low = middle
            else:
                high = middle
        return low + 1

    def _is_left(self, name: int, by: int) -> bool:
        """Whether others than `by` followed on a chunk; remembers that it did."""
        before = self._next.get(name, by)
        self._next[name] = by if before == by else _SEVERAL
        self._next.move_to_end(name)
        if len(self._next) > _MOST_TURNS:
            self._next.popitem(last=False)
        return before != by

    def known(self, replica_id: str) -> int:
        """How many chunks the replica is known to hold, without those only expected."""
        replica = self._replicas.get(replica_id)
        return replica.held if replica else 0

    def _ids(self, bits: int) -> frozenset[str]:
        """Whose bits these are. The same few groups are asked for again and again."""
        known = self._groups.get(bits)
        if known is None:
            ids: list[str] = []
            left = bits
            while left:
                place = left.bit_length() - 1
                left ^= 1 << place
                replica = self._by_place[place]
                assert replica is not None, "a bit that is set and belongs to nobody"
                ids.append(replica.id)
            if len(self._groups) >= _MOST_GROUPS:
                self._groups.clear()
            known = self._groups[bits] = frozenset(ids)
        return known

    def _leading(self, names: Sequence[int], bit: int, expected: dict[int, float]) -> int:
        """How many leading names are held for sure: they need no expectation."""
        masks, low, high = self._masks, 0, len(names)
        while low < high:
            middle = (low + high) // 2
            if masks.get(names[middle], 0) & bit and names[middle] not in expected:
                low = middle + 1
            else:
                high = middle
        return low

    def _expire(self, now: float) -> None:
        """Every expected name is in one entry, with the time it was first expected until; it may have grown since."""
        while self._expiring and self._expiring[0][0] <= now:
            _, _, replica, names = heappop(self._expiring)
            expected = replica.expected
            later: list[int] = []
            for name in names:
                until = expected.get(name)
                if until is None:
                    continue
                if until > now:
                    later.append(name)
                else:
                    del expected[name]
                    self._clear(name, replica.bit)
            if later:
                self._push(min(expected[name] for name in later), replica, later)

    def _push(self, until: float, replica: _Replica, names: list[int]) -> None:
        self._pushed += 1
        heappush(self._expiring, (until, self._pushed, replica, names))

    def _clear(self, name: int, bit: int) -> None:
        mask = self._masks.get(name, 0) & ~bit
        if mask:
            self._masks[name] = mask
        else:
            self._masks.pop(name, None)

    def _replica(self, replica_id: str) -> _Replica:
        replica = self._replicas.get(replica_id)
        if replica is None:
            place = next((at for at, one in enumerate(self._by_place) if one is None), len(self._by_place))
            replica = _Replica(replica_id, 1 << place)
            self._by_place[place : place + 1] = [replica]
            self._replicas[replica_id] = replica
            self._live |= replica.bit
        return replica

    def _tidy(self, replica: _Replica) -> None:
        if len(replica.log) > 2 * replica.held + _SLACK:
            masks, bit, expected = self._masks, replica.bit, replica.expected
            held = (name for name in replica.log if masks.get(name, 0) & bit and name not in expected)
            replica.log = array("Q", dict.fromkeys(held))
        if self._gone:
            self._sweep()

    def _sweep(self) -> None:
        gone = self._gone[0]
        for name in gone.log[-_SWEEP:]:
            self._clear(name, gone.bit)
        del gone.log[-_SWEEP:]
        if not gone.log:
            self._gone.popleft()
            self._by_place[gone.bit.bit_length() - 1] = None

    def check(self) -> None:
        """Both sides of the books; AssertionError where they differ. Looks at every name: for tests."""
        counts = dict.fromkeys(self._replicas, 0)
        for name, mask in self._masks.items():
            assert mask, f"{name} is kept for nobody"
            for replica in self._replicas.values():
                counts[replica.id] += bool(mask & replica.bit)
        for replica in self._replicas.values():
            assert counts[replica.id] == replica.held + len(replica.expected), f"{replica.id}'s count is wrong"
            assert replica.held <= self._most, f"{replica.id} holds {replica.held} of {self._most}"
        assert self._live == sum(one.bit for one in self._replicas.values()), "a bit lives without its replica"
