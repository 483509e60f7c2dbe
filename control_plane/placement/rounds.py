"""One round of placing for the whole fleet: who is next, where it goes, who makes room for it, who waits. Pure; knows
nothing of rows, clocks or agents.

Endpoints that have no replica come first, each once however many requests wait for it, in the order in which they
asked; a priority counts as so many seconds of waiting. Whoever cannot be placed has the first claim on the room that is
coming: smaller ones behind it may go past it only to other devices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from control_plane.endpoints.memory import human
from control_plane.placement.eviction import PATIENCE_S, Eviction, Resident, evict, loss_of, turn
from control_plane.placement.fleet import Fleet
from control_plane.placement.planner import DeviceView, Need, NoRoom, Placed, Spot, threads_for

HEAD_START_S = {"low": 0.0, "normal": 5.0, "high": 15.0}
"""What a priority is worth in line: bounded, so that nobody waits for ever."""
WEIGHT = {"low": 0.25, "normal": 1.0, "high": 4.0}
"""What a priority is worth when room is made."""
MOST_TRIED = 8
"""Endpoints in a round for which room is sought, however many there are; the others are told that they are in line."""
MOST_DEVICES = 16
"""Devices on which evicting is tried for one endpoint: those with most idle bytes."""


@dataclass(frozen=True)
class Want:
    """An endpoint that lacks `missing` replicas of its current revision. Times in Unix seconds."""

    endpoint_id: str
    endpoint: str
    need: Need
    missing: int = 1
    desired: int = 1
    asked_at: float = 0.0
    priority: str = "normal"
    is_first: bool = True
    """It has no replica that serves or is coming."""
    own: Mapping[Spot, int] = field(default_factory=dict[Spot, int])
    cached: frozenset[str] = frozenset()
    parked: tuple[Resident, ...] = ()

    @property
    def turn(self) -> tuple[bool, float, str]:
        """Its place in line: the least is next."""
        return not self.is_first, self.asked_at - HEAD_START_S[self.priority], self.endpoint_id


@dataclass(frozen=True)
class Place:
    """Start a replica there. `seen`: the devices that were weighed, or of many the best."""

    want: Want
    placed: Placed
    threads: int
    seen: tuple[DeviceView, ...]


@dataclass(frozen=True)
class Unpark:
    """Let a parked replica serve again."""

    want: Want
    replica_id: str


@dataclass(frozen=True)
class Refuse:
    """It can never be."""

    want: Want
    why: NoRoom


@dataclass(frozen=True)
class Evict:
    """Make room for it on that device. `seen`: who was there, and what was missing."""

    want: Want
    spot: Spot
    missing_bytes: int
    victims: tuple[Eviction, ...]
    seen: tuple[Resident, ...]
    reason: str


@dataclass(frozen=True)
class Wait:
    """It waits for room. `line`: how many are before it."""

    want: Want
    why: NoRoom
    line: int
    reason: str


Step = Place | Unpark | Refuse | Evict | Wait


class Round:
    """What is known when the round begins, and what it has given away so far."""

    def __init__(self, fleet: Fleet, residents: Sequence[Resident], now: float, *, most_seen: int = 8) -> None:
        self._fleet = fleet
        self._now = now
        self._most_seen = most_seen
        self._there: dict[Spot, list[Resident]] = {}
        self._leaving: dict[Spot, int] = {}
        self._idle: dict[bool, dict[Spot, int]] = {}
        self._tried = 0
        self._waiting = 0
        for each in residents:
            if each.standing == "leaving":
                self._leaving[each.spot] = self._leaving.get(each.spot, 0) + each.holds_bytes
            else:
                self._there.setdefault(each.spot, []).append(each)

    def decide(self, wants: Sequence[Want]) -> list[Step]:
        """All steps, in the order in which they are to be done."""
        steps: list[Step] = []
        for want in sorted(wants, key=lambda each: each.turn):
            own = dict(want.own)
            parked = list(want.parked)
            for _ in range(want.missing):
                step = self._one(want, own, parked)
                steps.append(step)
                if not isinstance(step, Place | Unpark):
                    break
        return steps

    def _one(self, want: Want, own: dict[Spot, int], parked: list[Resident]) -> Step:
        for each in list(parked):
            view = self._fleet.view(each.spot)
            if view is not None and each.kv_bytes <= view.room_bytes:
                parked.remove(each)
                self._there[each.spot] = [one for one in self._there[each.spot] if one is not each]
                self._fleet.take(each.spot, each.kv_bytes, works=1)
                return Unpark(want, each.replica_id)
        choice = self._fleet.place(want.need, own, want.cached)
        if isinstance(choice, Placed):
            return self._placed(want, own, choice)
        if choice.permanent:
            return Refuse(want, choice)
        return self._make_room(want, choice)

    def _placed(self, want: Want, own: dict[Spot, int], choice: Placed) -> Place:
        seen = self._fleet.beside(choice, want.need, own, want.cached, self._most_seen)
        self._fleet.take(choice.spot, choice.estimate.total_bytes, works=1)
        own[choice.spot] = own.get(choice.spot, 0) + 1
        view = self._fleet.view(choice.spot)
        assert view is not None, "it was chosen among the fleet's"
        places = sum(each.kind == view.kind for each in seen)
        copies = max(own[choice.spot], -(-want.desired // max(1, places)))
        return Place(want, choice, threads_for(view, copies), seen)

    def _make_room(self, want: Want, why: NoRoom) -> Step:
        leaving = [view for view in map(self._fleet.view, self._leaving) if view is not None]
        coming = next((v for v in leaving if want.need.allows(v) and self._lacks(want, v) <= 0), None)
        if coming is not None:
            self._claim(want, coming)
            names = f"{coming.device} of node {coming.node}"
            return self._wait(want, why, f"Replicas that are being stopped on {names} make room for it.")
        if self._tried >= MOST_TRIED:
            return self._wait(want, why, "Those before it in line come first.")
        self._tried += 1
        spots = [view for view in self._fleet.all() if want.need.allows(view)]
        if (step := self._evict(want, spots)) is not None:
            return step
        if want.is_first and spots:
            self._claim(want, max(spots, key=lambda view: (view.room_bytes, view.node, view.device)))
        return self._wait(want, why, "No replica that could make room is idle.")

    def _evict(self, want: Want, spots: list[DeviceView]) -> Evict | None:
        tried: list[tuple[float, int, str, DeviceView, tuple[Eviction, ...]]] = []
        for view in self._most_idle(want, spots):
            victims = evict(self._there.get(view.spot, []), self._lacks(want, view), is_first=want.is_first)
            if victims:
                tried.append((loss_of(victims), len(victims), f"{view.node}/{view.device}", view, victims))
        if tried:
            _, _, _, view, victims = min(tried, key=lambda each: each[:3])
            return self._evicted(want, view, victims, f"idle, and {_least(victims)}")
        waited_s = self._now - want.asked_at
        if not want.is_first or waited_s < PATIENCE_S:
            return None
        turns = [(view, turn(self._there.get(view.spot, []), self._lacks(want, view))) for view in spots]
        ready = [(view, found) for view, found in turns if found is not None]
        if not ready:
            return None
        view, found = min(ready, key=lambda each: (each[1].loss, each[1].replica_id))
        return self._evicted(want, view, (found,), f"had its turn while {want.endpoint} waited for {waited_s:.0f} s")

    def _evicted(self, want: Want, view: DeviceView, victims: tuple[Eviction, ...], because: str) -> Evict:
        missing = self._lacks(want, view)
        there = self._there[view.spot]
        gone = {each.replica_id for each in victims}
        self._there[view.spot] = [each for each in there if each.replica_id not in gone]
        for is_first, idle in self._idle.items():
            stay = (each for each in self._there[view.spot] if each.may_be_evicted(is_first=is_first))
            idle[view.spot] = sum(each.holds_bytes for each in stay)
        freed = sum(each.frees_bytes for each in victims)
        self._leaving[view.spot] = self._leaving.get(view.spot, 0) + freed
        self._claim(want, view)
        takes = want.need.on(view).total_bytes
        reason = (
            f"'{want.endpoint}' needs {human(takes)} on {view.device} of node {view.node}, where {human(missing)} were "
            f"missing: {because}."
        )
        return Evict(want, view.spot, missing, victims, tuple(there), reason)

    def _most_idle(self, want: Want, spots: list[DeviceView]) -> list[DeviceView]:
        """Where enough can be evicted, most bytes first; few of many."""
        if want.is_first not in self._idle:
            self._idle[want.is_first] = {
                spot: sum(each.holds_bytes for each in there if each.may_be_evicted(is_first=want.is_first))
                for spot, there in self._there.items()
            }
        idle = self._idle[want.is_first]
        some = sorted(
            (view for view in spots if idle.get(view.spot)),
            key=lambda view: (-idle[view.spot], view.node, view.device),
        )
        return list(islice((v for v in some if idle[v.spot] >= self._lacks(want, v)), MOST_DEVICES))

    def _lacks(self, want: Want, view: DeviceView) -> int:
        """Bytes that are missing there, once all that leave have left."""
        return want.need.on(view).total_bytes - view.room_bytes - self._leaving.get(view.spot, 0)

    def _claim(self, want: Want, view: DeviceView) -> None:
        self._fleet.take(view.spot, want.need.on(view).total_bytes)

    def _wait(self, want: Want, why: NoRoom, reason: str) -> Wait:
        line = self._waiting
        self._waiting += 1
        return Wait(want, why, line, reason)


def _least(victims: tuple[Eviction, ...]) -> str:
    names = ", ".join(f"'{each.endpoint}'" for each in victims)
    return f"to {'park' if victims[0].how == 'park' else 'stop'} {names} loses least"
