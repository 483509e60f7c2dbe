"""When work starts: by the hour of the day, on working days and weekends; of one endpoint, and of all together. Pure.

One endpoint's starts are few for weeks, and most endpoints' users sleep at the same time: what is true of all of them
stands in for what is not yet known of one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

DAY_S = 86400.0
HALF_LIFE_S = 21 * DAY_S
"""After this long what was counted counts half: three weeks, for what an endpoint's use is like."""
HOURS, DAYS = 24, 7
WEEKEND = (5, 6)
"""Of the days from Monday on."""
THURSDAY = 3
"""The day of the week at Unix time 0."""
HOUR_TRUST = 10.0
"""Starts of work that must be known of an endpoint for their hours to weigh as much as those of all endpoints."""
ALL_TRUST = 5.0
"""Starts in each hour that must be known of all endpoints for them to weigh as much as the same rate at all hours."""
DAY_TRUST = 10.0
"""Starts that must be known of all endpoints for their days to weigh as much as the same rate on all days."""
LOUDEST = 30.0
"""However busy, no endpoint counts for more starts than this among all."""
FRESH_S = 600.0
"""What is true of all is counted anew after this long."""
LONG_AGO = 26
"""Weeks: what was longer ago is forgotten."""


@dataclass
class Histogram:
    """Weights by bin; each halves every `half_life_s`."""

    weights: list[float]
    at: float = 0.0
    """Unix seconds up to which the weights have been forgotten."""
    half_life_s: float = HALF_LIFE_S

    def add(self, bin: int, at: float) -> None:
        """Count one in a bin, as of `at`. A time before the last one counts as of the last."""
        faded = self._faded(at)
        if faded < 1.0:
            self.weights = [weight * faded for weight in self.weights]
        self.at = max(self.at, at)
        self.weights[bin] += 1.0

    def count(self, now: float) -> float:
        """What is remembered at `now` of all that was counted."""
        return sum(self.weights) * self._faded(now)

    def remembered(self, now: float) -> list[float]:
        """The weights as of `now`."""
        faded = self._faded(now)
        return [weight * faded for weight in self.weights]

    def _faded(self, now: float) -> float:
        return 0.5 ** (max(0.0, now - self.at) / self.half_life_s)


@dataclass(frozen=True)
class Habits:
    """How much more likely work starts at a time than in the mean of all times: by the hour of the day (UTC), and on
    (working days, weekends). 1.0 where nothing is known."""

    hours: tuple[float, ...] = (1.0,) * HOURS
    days: tuple[float, float] = (1.0, 1.0)

    def on(self, at: float) -> float:
        """The day's part of it, at `at` (Unix seconds)."""
        return self.days[day_of(at) in WEEKEND]


@dataclass
class Starts:
    """One endpoint's starts of work after a rest: by the hour of the day and the day of the week, both in UTC."""

    hours: Histogram = field(default_factory=lambda: Histogram([0.0] * HOURS))
    days: Histogram = field(default_factory=lambda: Histogram([0.0] * DAYS))
    since: float = 0.0
    """Unix seconds from which on days are counted; 0.0 while none is."""

    def add(self, at: float) -> None:
        """Work started at `at` (Unix seconds)."""
        self.hours.add(hour_of(at), at)
        self.days.add(day_of(at), at)
        self.since = self.since or at

    def by_hour(self, now: float, habits: Habits) -> list[float]:
        """For each hour of the day: how much more likely work starts in it than in the mean of all hours, as far as it
        is not known by what all endpoints do."""
        starts = self.hours.remembered(now)
        total = sum(starts) + HOUR_TRUST
        return [
            (around * HOURS + HOUR_TRUST * usual) / total
            for around, usual in zip(_around(starts), habits.hours, strict=True)
        ]


def together(all_starts: Iterable[Starts], now: float) -> Habits:
    """What is true of all endpoints at `now`."""
    hours, days, since = [0.0] * HOURS, [0.0] * DAYS, now
    for starts in all_starts:
        known = starts.hours.count(now)
        share = LOUDEST / (LOUDEST + known)
        hours = [one + share * more for one, more in zip(hours, starts.hours.remembered(now), strict=True)]
        days = [one + share * more for one, more in zip(days, starts.days.remembered(now), strict=True)]
        since = min(since, starts.since or now)
    mean = sum(hours) / HOURS
    return Habits(tuple((one + ALL_TRUST) / (mean + ALL_TRUST) for one in _around(hours)), _by_day(days, since, now))


def hour_of(at: float) -> int:
    """The hour of the day (UTC) that `at` (Unix seconds) is in."""
    return int(at % DAY_S * HOURS / DAY_S) % HOURS


def day_of(at: float) -> int:
    """The day of the week (UTC) that `at` (Unix seconds) is in; Monday is 0."""
    return (int(at // DAY_S) + THURSDAY) % DAYS


def _around(hours: Sequence[float]) -> list[float]:
    """The mean of each hour and those beside it."""
    return [(hours[at - 1] + hours[at] + hours[(at + 1) % HOURS]) / 3.0 for at in range(HOURS)]


def _by_day(days: Sequence[float], since: float, now: float) -> tuple[float, float]:
    """Starts on (working days, weekends) against what would be expected of the time that each has had since `since`."""
    spent = [0.0, 0.0]
    at = max(since, now - LONG_AGO * DAYS * DAY_S)
    while at < now:
        until = min(now, (at // DAY_S + 1.0) * DAY_S)
        spent[day_of(at) in WEEKEND] += (until - at) * 0.5 ** ((now - at) / HALF_LIFE_S)
        at = until
    total = sum(spent)
    if total <= 0.0:
        return (1.0, 1.0)
    ended = [0.0, 0.0]
    for day, count in enumerate(days):
        ended[day in WEEKEND] += count
    working, weekend = (
        (count + DAY_TRUST) / (sum(ended) * time / total + DAY_TRUST) for count, time in zip(ended, spent, strict=True)
    )
    return (working, weekend)
