"""How long an idle replica is kept, and when one is woken before its request. Pure; knows no clock, rows or processes.

An endpoint's history is a histogram of its idle times that forgets with time, one for all hours and one for each part
of the week. From it follows the chance that a request comes in each stretch of the idle time that has now begun; a
replica is held in those stretches in which the wait it saves is worth more than the memory it holds. A stretch that
does not begin at once is a waking ahead of a predicted arrival.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

SHORTEST_S = 1.0
"""A shorter pause is no idleness: nothing can be put to sleep and woken in it."""
LONGEST_S = 8 * 86400.0
STEPS_TO_DOUBLE = 8
START_COSTS = 3.0
"""Starting again after a sleep costs its memory's time and keeps the node from other work: so many times its length."""
DAY_S = 86400.0
PARTS_OF_DAY = 6
HALF_LIFE_S = 7 * DAY_S
"""After this long an idle time counts half: a week, so that the last same weekday still has a say."""
ENOUGH = 4.0
"""Idle times, after forgetting, from which a histogram says something."""
PART_TRUST = 8.0
"""Idle times that a part of the week needs to weigh as much as all hours together."""


def _edges() -> tuple[float, ...]:
    count = math.ceil(math.log2(LONGEST_S / SHORTEST_S) * STEPS_TO_DOUBLE)
    return (0.0, *(SHORTEST_S * 2 ** (step / STEPS_TO_DOUBLE) for step in range(count + 1)))


EDGES = _edges()
"""Seconds: bin i is the idle times from EDGES[i] to EDGES[i + 1]; what is longer than all is in the last."""
BINS = len(EDGES) - 1


@dataclass
class Histogram:
    """Weights of idle times, by bin; each halves every HALF_LIFE_S."""

    weights: list[float] = field(default_factory=lambda: [0.0] * BINS)
    at: float = 0.0
    """Unix seconds up to which the weights have been forgotten."""

    def add(self, idle_s: float, at: float) -> None:
        """Count an idle time that ended at `at`. A time before the last one counts as of the last."""
        faded = _faded(self.at, at)
        if faded < 1.0:
            self.weights = [weight * faded for weight in self.weights]
        self.at = max(self.at, at)
        self.weights[bin_of(idle_s)] += 1.0

    def count(self, now: float) -> float:
        """Idle times remembered at `now`."""
        return sum(self.weights) * _faded(self.at, now)


@dataclass
class History:
    """What is known of one endpoint: all its idle times, and those that began in each part of the week."""

    whole: Histogram = field(default_factory=Histogram)
    parts: dict[int, Histogram] = field(default_factory=dict[int, Histogram])

    def learn(self, idle_s: float, ended_at: float) -> None:
        """An idle time ended with a request. Pauses under SHORTEST_S, and nonsense, are not counted."""
        if not (math.isfinite(idle_s) and math.isfinite(ended_at)) or idle_s < SHORTEST_S:
            return
        self.whole.add(idle_s, ended_at)
        self.parts.setdefault(part_of_week(ended_at - idle_s), Histogram()).add(idle_s, ended_at)

    def shares(self, began_at: float) -> list[float]:
        """The chance of each bin for an idle time that begins at `began_at`; sums to 1, or to 0 with no history."""
        whole = _normal(self.whole.weights)
        part = self.parts.get(part_of_week(began_at))
        if part is None:
            return whole
        trust = part.count(began_at)
        trust /= trust + PART_TRUST
        own = _normal(part.weights)
        return [trust * one + (1.0 - trust) * other for one, other in zip(own, whole, strict=True)]


@dataclass(frozen=True)
class Terms:
    """What a wait is worth against memory.

    `worth` is the GB-seconds of memory that a second of waiting saved is worth; `pressure` raises the price of memory
    that others want (1.0: nobody else does). `constant_s` is what is done with too little history.
    """

    start_s: float
    memory_bytes: int
    worth: float = 240.0
    pressure: float = 1.0
    constant_s: float = 300.0

    @property
    def break_even_s(self) -> float:
        """Seconds of holding one replica that cost as much as one start that is waited for."""
        gigabytes = max(self.memory_bytes, 1) / 1e9
        return self.worth * max(self.start_s, 0.0) / (gigabytes * max(self.pressure, 1e-9))


@dataclass(frozen=True)
class Plan:
    """Stretches of an idle time, in seconds since the last work ended, in which a replica is held; and why."""

    held: tuple[tuple[float, float], ...]
    reason: str
    is_fallback: bool = False

    def is_held(self, idle_s: float) -> bool:
        """Whether a replica should be there after `idle_s` without work."""
        return any(start <= idle_s < end for start, end in self.held)

    def held_until(self, idle_s: float) -> float:
        """The end of the stretch that `idle_s` is in; `idle_s` itself where none is held then."""
        return next((end for start, end in self.held if start <= idle_s < end), idle_s)

    def next_start(self, idle_s: float) -> float:
        """When the next stretch after `idle_s` begins; infinite where there is none."""
        return next((start for start, _ in self.held if start > idle_s), math.inf)


def plan(history: History, terms: Terms, began_at: float) -> Plan:
    """What to do with an endpoint that has been without work since `began_at` (Unix seconds)."""
    known = history.whole.count(began_at)
    if known < ENOUGH:
        return Plan(
            ((0.0, terms.constant_s),) if terms.constant_s > 0 else (),
            f"Only {known:.1f} idle times are known of the {ENOUGH:g} that a prediction takes: "
            f"kept for the constant {terms.constant_s:g} s.",
            is_fallback=True,
        )
    held = _ahead(_stretches(history.shares(began_at), terms), terms.start_s)
    return Plan(held, _reason(held, history, terms, known))


def idle_limit_s(plan: Plan, began_at: float, quiet_since: float, now: float) -> float:
    """The idle time to hand to the policy, which counts from `quiet_since`: a start since then, or `began_at`."""
    return max(0.0, began_at + plan.held_until(max(0.0, now - began_at)) - quiet_since)


@dataclass(frozen=True)
class Wake:
    """Whether to wake a sleeping endpoint now, until when it is then held, and after how long to ask again."""

    is_due: bool
    held_until: float = 0.0
    again_s: float = math.inf


def wake(plan: Plan, began_at: float, now: float) -> Wake:
    """What a plan says of an endpoint that sleeps at `now`. A fallback's plan predicts nothing, and wakes nobody."""
    idle_s = max(0.0, now - began_at)
    if plan.is_fallback:
        return Wake(is_due=False)
    if any(0.0 < start <= idle_s < end for start, end in plan.held):
        return Wake(is_due=True, held_until=began_at + plan.held_until(idle_s))
    return Wake(is_due=False, again_s=plan.next_start(idle_s) - idle_s)


def bin_of(idle_s: float) -> int:
    """The bin of an idle time; what is longer than all belongs to the last."""
    return min(max(bisect_right(EDGES, idle_s) - 1, 0), BINS - 1)


def part_of_week(at: float) -> int:
    """Which part of the week `at` (Unix seconds, UTC) is in: weekday or weekend, and a sixth of the day."""
    day, second = divmod(at, DAY_S)
    is_weekend = (int(day) + 3) % 7 >= 5  # 1 January 1970 was a Thursday; Monday is 0
    return int(second * PARTS_OF_DAY / DAY_S) + PARTS_OF_DAY * is_weekend


def _stretches(shares: Sequence[float], terms: Terms) -> list[tuple[int, int]]:
    """The bins to hold, as [first, last) pairs: the best way through them by dynamic programming.

    To hold a bin saves a start for each idle time that ends in it, and costs the time until they end. To hold after
    having slept costs START_COSTS starts' time of memory as well.
    """
    still = [*reversed([*accumulate(reversed(shares))]), 0.0]
    last = max((at for at, share in enumerate(shares) if share > 0.0), default=-1)
    saved_s, again_s = terms.break_even_s, START_COSTS * terms.start_s
    held, slept = 0.0, 0.0  # the most that can be gained from here on, by the state in the bin before
    holds: list[tuple[bool, bool]] = []
    for at in range(last, -1, -1):
        ends = shares[at]
        kept = held + saved_s * ends - (still[at + 1] + ends / 2.0) * (EDGES[at + 1] - EDGES[at])
        woken = kept - again_s * still[at]
        holds.append((kept > slept, woken > slept))
        held, slept = (kept if kept > slept else slept), (woken if woken > slept else slept)
    stretches: list[tuple[int, int]] = []
    is_held = True  # the replica that did the last work is there
    for at, (if_held, if_slept) in enumerate(reversed(holds)):
        was_held, is_held = is_held, if_held if is_held else if_slept
        if is_held and was_held and stretches:
            stretches[-1] = (stretches[-1][0], at + 1)
        elif is_held:
            stretches.append((at, at + 1))
    return stretches


def _ahead(stretches: list[tuple[int, int]], start_s: float) -> tuple[tuple[float, float], ...]:
    """In seconds, each begun a start's time early; those that then touch are one."""
    spans: list[tuple[float, float]] = []
    for first, last in stretches:
        start, end = max(0.0, EDGES[first] - (start_s if first else 0.0)), EDGES[last]
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return tuple(spans)


def _reason(held: tuple[tuple[float, float], ...], history: History, terms: Terms, known: float) -> str:
    by = f"{known:.0f} idle times, and a start is worth {terms.break_even_s:.0f} s of its memory"
    if not held:
        return f"Not kept: by {by}, no stretch is worth holding."
    kept = f"Kept for {held[0][1]:.0f} s" if held[0][0] == 0.0 else "Not kept"
    ahead = [f"from {start:.0f} to {end:.0f} s" for start, end in held if start > 0.0]
    woken = f", and woken ahead of an arrival {' and '.join(ahead)}" if ahead else ""
    return f"{kept}{woken}: by {by}."


def _normal(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0.0 else [0.0] * len(weights)


def _faded(since: float, now: float) -> float:
    return 0.5 ** (max(0.0, now - since) / HALF_LIFE_S)
