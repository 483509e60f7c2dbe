"""Who makes room for an endpoint that wakes: the idle replicas whose loss costs least. Pure; knows nothing of rows,
clocks or how a replica is stopped.

What is lost with a replica is its expected arrivals a second, times the seconds that each of them would then wait,
times its endpoint's priority. Parking it frees its KV cache and costs little to undo; stopping it frees all. Of the
ways to free enough on one device that with the least loss is taken, by dynamic programming over bytes: the exact form
of "least value per byte first". Never a replica that works, that was not yet given its time, or that its endpoint's
minimum needs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from control_plane.placement.planner import Spot

How = Literal["park", "stop", "turn"]
Standing = Literal["ready", "parked", "coming", "leaving"]

UNITS = 64
"""Bytes are counted in sixty-fourths of what is missing."""
SERVED_REST_S = 0.2
"""One that has served since it became ready, and is idle for so long, has done what it was started for."""
UNSERVED_REST_S = 10.0
"""One that was started and has served nobody yet is waited for: else a start would be thrown away for another."""
MORE_REST_S = 30.0
"""So long must one be idle to make room for another replica of an endpoint that has one already."""
TURN_S = 15.0
"""Where all are busy all the time, each gets at least so long before it must let another have its turn."""
PATIENCE_S = 10.0
"""So long waits the first in line before a busy one is asked for its turn."""
TRIFLE = 1e-9
"""Of two ways that lose nothing the one with fewer replicas is taken."""


@dataclass(frozen=True)
class Resident:
    """A replica that holds memory on a device. Times in seconds; None for what is not known, or never was."""

    replica_id: str
    endpoint_id: str
    endpoint: str
    spot: Spot
    standing: Standing
    holds_bytes: int
    kv_bytes: int = 0
    """Of them what parking would free; 0: it cannot be parked."""
    has_work: bool | None = None
    ready_for_s: float | None = None
    idle_s: float | None = None
    """Since the last work ended; None: never any."""
    arrivals_per_s: float = 0.0
    restore_s: float = 3.0
    unpark_s: float = 0.15
    weight: float = 1.0
    """Of the endpoint's priority."""
    may_go: bool = True
    """Whether its endpoint has more replicas than its minimum."""

    @property
    def has_served(self) -> bool:
        """Since it became ready."""
        return self.ready_for_s is not None and self.idle_s is not None and self.idle_s < self.ready_for_s

    def may_be_evicted(self, *, is_first: bool) -> bool:
        """For a replica of another endpoint; `is_first`: that endpoint has none."""
        if self.standing == "parked":
            return True
        if self.standing != "ready" or self.has_work is not False or not self.may_go:
            return False
        ready_s = self.ready_for_s or 0.0
        quiet_s = min(ready_s, math.inf if self.idle_s is None else self.idle_s)
        rest_s = SERVED_REST_S if self.has_served else UNSERVED_REST_S
        return quiet_s >= (rest_s if is_first else max(rest_s, MORE_REST_S))

    def may_be_turned_out(self) -> bool:
        """Whether it has had its turn: it finishes what it runs, and makes place for one that has waited."""
        return self.standing == "ready" and self.may_go and (self.ready_for_s or 0.0) >= TURN_S


@dataclass(frozen=True)
class Eviction:
    """One replica that goes, what that frees, and what is lost by it: expected seconds of waiting a second."""

    replica_id: str
    endpoint_id: str
    endpoint: str
    how: How
    frees_bytes: int
    loss: float


def arrivals_per_s(idle_s: float | None) -> float:
    """What to expect of an endpoint of which no more is known than how long it has been idle: one arrival in as long
    again, as for any process that is seen at a moment of no meaning (Gott's rule)."""
    return 0.0 if idle_s is None else 1.0 / max(idle_s, 1.0)


def evict(residents: Sequence[Resident], missing_bytes: int, *, is_first: bool = True) -> tuple[Eviction, ...] | None:
    """Who goes from one device so that `missing_bytes` come free, with the least loss; None where that cannot be."""
    ways = [_ways(each) for each in residents if each.may_be_evicted(is_first=is_first)]
    if missing_bytes <= 0:
        return ()
    if sum(max(way.frees_bytes for way in each) for each in ways) < missing_bytes:
        return None
    unit = max(1, missing_bytes // UNITS)
    # a way counts as the units that it begins: so many more of them make up for what that rounds up
    for units in range(missing_bytes // unit, missing_bytes // unit + len(ways) + 1):
        chosen = _cheapest(ways, unit, units)
        if sum(each.frees_bytes for each in chosen) >= missing_bytes:
            return _without_spare(chosen, missing_bytes)
    return _without_spare([max(each, key=lambda way: way.frees_bytes) for each in ways], missing_bytes)


def turn(residents: Sequence[Resident], missing_bytes: int) -> Eviction | None:
    """Who has had its turn, where nobody is idle: the one that has been there longest, for its priority."""
    able = [each for each in residents if each.may_be_turned_out() and each.holds_bytes >= missing_bytes]
    if not able:
        return None
    longest = max(able, key=lambda each: ((each.ready_for_s or 0.0) / each.weight, each.replica_id))
    loss = longest.arrivals_per_s * longest.restore_s * longest.weight
    return Eviction(longest.replica_id, longest.endpoint_id, longest.endpoint, "turn", longest.holds_bytes, loss)


def loss_of(evictions: Sequence[Eviction]) -> float:
    """Of all together."""
    return sum(each.loss for each in evictions)


def _ways(resident: Resident) -> list[Eviction]:
    """To stop it, and to park it where that frees anything."""
    who = (resident.replica_id, resident.endpoint_id, resident.endpoint)
    value = resident.arrivals_per_s * resident.weight
    is_parked = resident.standing == "parked"
    # what a parked one loses is only what starting takes longer than waking it
    restore_s = max(0.0, resident.restore_s - resident.unpark_s) if is_parked else resident.restore_s
    ways = [Eviction(*who, "stop", resident.holds_bytes, value * restore_s)]
    if resident.kv_bytes and not is_parked:
        ways.append(Eviction(*who, "park", resident.kv_bytes, value * resident.unpark_s))
    return ways


def _cheapest(ways: Sequence[Sequence[Eviction]], unit: int, units: int) -> list[Eviction]:
    """The choice of at most one way each that frees `units` at the least loss; [] where there is none."""
    least = [0.0] + [math.inf] * units
    chosen: list[tuple[Eviction, ...]] = [()] * (units + 1)
    for each in ways:
        before, had = list(least), list(chosen)
        for way in each:
            frees, loss = -(-way.frees_bytes // unit), way.loss + TRIFLE
            for covered in range(units + 1):
                rest = max(0, covered - frees)
                if covered and before[rest] + loss < least[covered]:
                    least[covered] = before[rest] + loss
                    chosen[covered] = (*had[rest], way)
    return list(chosen[units])


def _without_spare(chosen: Sequence[Eviction], missing_bytes: int) -> tuple[Eviction, ...]:
    """Without those that are not needed, the dearest left out first."""
    kept = list(chosen)
    for each in sorted(chosen, key=lambda way: (-way.loss, way.replica_id)):
        if sum(way.frees_bytes for way in kept) - each.frees_bytes >= missing_bytes:
            kept.remove(each)
    return tuple(kept)
