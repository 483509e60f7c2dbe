"""How long an idle replica is kept, and when one is woken before its request. Pure; knows no clock, rows or processes.

From an endpoint's own idle times follows the rate at which a request comes after each length of idleness: counts of the
idle times that ended there, over the time that was spent there. Where little is known, what is known of neighbouring
lengths speaks, and last what is true of all endpoints. The hour of the day and the weekend raise or lower the rate of
long ones (habits.py). From the rates follows the chance that a request comes in each stretch of the idle time that has
now begun; a replica is held in those stretches in which the wait it saves is worth more than the memory it holds. A
stretch that does not begin at once is a waking ahead of a predicted arrival.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from control_plane.autoscaler.habits import DAY_S, Habits, Histogram, Starts, hour_of

SHORTEST_S = 1.0
"""A shorter pause is no idleness: nothing can be put to sleep and woken in it."""
LONGEST_S = 8 * 86400.0
STEPS_TO_DOUBLE = 8
START_COSTS = 1.0
"""Starting again after a sleep costs its memory's time: so many times its length."""
LATELY_S = 3 * DAY_S
"""After this long an idle time counts half in what is true of these days."""
ENOUGH = 0.5
"""Idle times, after forgetting, from which a history says something: one, for three weeks. What it does not say is
taken as USUAL, which serves better than any constant."""
USUAL = 0.35
"""What is true of all endpoints: their rate at an idle time of t is about USUAL ÷ t, since work comes in bursts within
bursts. Measured on ServeGen's clients (github.com/alibaba/ServeGen, Apache-2.0): 0.2 to 0.5 from four minutes to two
days."""
TRUST = 2.0
"""Idle times that must have ended at a length for its own rate to weigh as much as what would be taken otherwise."""
NEIGHBOURS = 7
"""Half doublings that say something of one: three to each side, and as many again for theirs, the farther the less."""
LONG_S, REST_S = 1800.0, 600.0
"""The hour and the day matter to idle times beyond LONG_S. Work starts after a rest of at least REST_S."""
CELL_S = 7200.0
"""What is decided is decided for no more than this at once."""


def _edges() -> tuple[float, ...]:
    count = math.ceil(math.log2(LONGEST_S / SHORTEST_S) * STEPS_TO_DOUBLE)
    return (0.0, *(SHORTEST_S * 2 ** (step / STEPS_TO_DOUBLE) for step in range(count + 1)))


EDGES = _edges()
"""Seconds: bin i is the idle times from EDGES[i] to EDGES[i + 1]; what is longer than all is in the last."""
BINS = len(EDGES) - 1


GROUP = STEPS_TO_DOUBLE // 2
"""Bins to half a doubling."""
GROUPED = (0.0, *EDGES[1::GROUP])
"""The edges of half doublings: bin 0, and then each GROUP of bins."""


def _cells() -> tuple[tuple[float, float, int], ...]:
    cells: list[tuple[float, float, int]] = []
    for at, (start, end) in enumerate(pairwise(EDGES)):
        count = math.ceil((end - start) / CELL_S)
        steps = [start + (end - start) * step / count for step in range(count)] + [end]
        cells += [(one, other, at) for one, other in pairwise(steps)]
    return tuple(cells)


CELLS = _cells()
"""(from, to, bin): the stretches to hold or not; bins, the long ones in pieces."""


def _empty() -> list[float]:
    return [0.0] * BINS


@dataclass
class History:
    """What is known of one endpoint: its idle times, those of late, and when rests have ended."""

    whole: Histogram = field(default_factory=lambda: Histogram(_empty()))
    lately: Histogram = field(default_factory=lambda: Histogram(_empty(), half_life_s=LATELY_S))
    starts: Starts = field(default_factory=Starts)

    def learn(self, idle_s: float, ended_at: float) -> None:
        """An idle time ended with a request. Pauses under SHORTEST_S, and nonsense, are not counted."""
        if not (math.isfinite(idle_s) and math.isfinite(ended_at)) or idle_s < SHORTEST_S:
            return
        self.whole.add(bin_of(idle_s), ended_at)
        self.lately.add(bin_of(idle_s), ended_at)
        if idle_s >= REST_S:
            self.starts.add(ended_at)

    def rates(self, now: float) -> list[float]:
        """By bin: how many requests a second come to one who has been idle so long, at any hour."""
        whole = self.whole.remembered(now)
        known = [USUAL / math.sqrt(max(start, SHORTEST_S / 2) * end) for start, end in pairwise(GROUPED)]
        for bins in (whole, self.lately.remembered(now)):
            ended = [bins[0], *(sum(bins[at : at + GROUP]) for at in range(1, BINS, GROUP))]
            spent = _with_neighbours(_spent(ended, GROUPED))
            known = [*map(_believed, known, _with_neighbours(ended), spent)]
        # the more of all that end at one length, the more it is by the clock, and the less any other length has
        total = sum(whole) + TRUST
        around = [*map(sum, zip([0.0, *whole], whole, [*whole[1:], 0.0], strict=False))]
        most = max(around)
        spread = [known[(at + GROUP - 1) // GROUP] * (1.0 - (most - around[at]) / total) for at in range(BINS)]
        trust = [TRUST * (1.0 - ended / total) for ended in whole]
        return [*map(_believed, spread, whole, _spent(whole, EDGES), trust)]

    def chances(self, began_at: float, habits: Habits) -> list[float]:
        """By cell, for an idle time that began at `began_at`: the chance that a request comes in it, if none came
        before. `habits` are those of all endpoints."""
        rates, by_hour = self.rates(began_at), self.starts.by_hour(began_at, habits)

        def likelier(at: float) -> float:
            return by_hour[hour_of(at)] * habits.on(at)

        return [
            -math.expm1(
                -rates[bin] * (end - start) * (likelier(began_at + (start + end) / 2.0) if start >= LONG_S else 1.0)
            )
            for start, end, bin in CELLS
        ]


@dataclass(frozen=True)
class Terms:
    """What a wait is worth against memory.

    `worth` is the GB-seconds of memory that a second of waiting saved is worth; `pressure` raises the price of memory
    that others want (1.0: nobody else does). `constant_s` is what is done with too little history. The default worth
    keeps 16 GB that start in 20 s for 50 minutes where nobody else wants them (pressure 1): long enough for whoever
    comes back from a meal, short enough that an endpoint that sleeps is seen to sleep.
    """

    start_s: float
    memory_bytes: int
    worth: float = 2_400.0
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


def plan(history: History, terms: Terms, began_at: float, habits: Habits | None = None) -> Plan:
    """What to do with an endpoint that has been without work since `began_at` (Unix seconds); `habits` are those of all
    endpoints, None where they are not known."""
    known = history.whole.count(began_at)
    if known < ENOUGH:
        return Plan(
            ((0.0, terms.constant_s),) if terms.constant_s > 0 else (),
            f"Only {known:.1f} idle times are known of the {ENOUGH:g} that a prediction takes: "
            f"kept for the constant {terms.constant_s:g} s.",
            is_fallback=True,
        )
    held = _ahead(_stretches(history.chances(began_at, habits or Habits()), terms), terms.start_s)
    return Plan(held, _reason(held, terms, known))


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


def _spent(ended: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Seconds that idle times spent in each bin: all of it those that went on, half of it those that ended there."""
    beyond = [*reversed([*accumulate(reversed(ended))])]
    return [
        (still - count / 2.0) * (end - start)
        for still, count, (start, end) in zip(beyond, ended, pairwise(edges), strict=True)
    ]


def _believed(rate: float, ended: float, spent_s: float, trust: float = TRUST) -> float:
    """A rate by what was seen, as `trust` idle times more at that rate would have it (a gamma's mean, after)."""
    return (ended + trust) / (spent_s + trust / rate)


def _with_neighbours(values: Sequence[float]) -> list[float]:
    """Each with its neighbours' values, the farther the less: a mean over NEIGHBOURS of a sum over NEIGHBOURS."""
    return [value / NEIGHBOURS for value in _sums(_sums(values))]


def _sums(values: Sequence[float]) -> list[float]:
    """The sum over the NEIGHBOURS values around each."""
    beside, last = NEIGHBOURS // 2, len(values)
    upto = [0.0, *accumulate(values)]
    return [upto[min(at + beside + 1, last)] - upto[max(at - beside, 0)] for at in range(last)]


def _stretches(chances: Sequence[float], terms: Terms) -> list[tuple[int, int]]:
    """The cells to hold, as [first, last) pairs: the best way through them by dynamic programming.

    To hold a cell saves a start for each idle time that ends in it, and costs the time until they end. To hold after
    having slept costs START_COSTS starts' time of memory as well.
    """
    saved_s, again_s = terms.break_even_s + terms.start_s, START_COSTS * terms.start_s
    held, slept = 0.0, 0.0  # the most that can be gained from here on, by the state in the cell before
    holds: list[tuple[bool, bool]] = []
    for chance, (start, end, _) in zip(reversed(chances), reversed(CELLS), strict=True):
        left = 1.0 - chance
        kept = chance * saved_s - (1.0 - chance / 2.0) * (end - start) + left * held
        rest, woken = left * slept, kept - again_s
        holds.append((kept > rest, woken > rest))
        held, slept = max(kept, rest), max(woken, rest)
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
        start, end = max(0.0, CELLS[first][0] - (start_s if first else 0.0)), CELLS[last - 1][1]
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return tuple(spans)


def _reason(held: tuple[tuple[float, float], ...], terms: Terms, known: float) -> str:
    by = f"{known:.0f} idle times, and a start is worth {terms.break_even_s:.0f} s of its memory"
    if not held:
        return f"Not kept: by {by}, no stretch is worth holding."
    kept = f"Kept for {held[0][1]:.0f} s" if held[0][0] == 0.0 else "Not kept"
    ahead = [f"from {start:.0f} to {end:.0f} s" for start, end in held if start > 0.0]
    woken = f", and woken ahead of an arrival {' and '.join(ahead)}" if ahead else ""
    return f"{kept}{woken}: by {by}."
