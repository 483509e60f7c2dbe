"""How many replicas an endpoint's work takes for its latency to be held: now, at the most lately, and in each of the last
minutes. Pure; knows no rows, clock or gateways, nor what is decided by it.

Where a prompt may wait `d` seconds, n replicas hold that exactly if no window of any length s brings more work than they
do in s + d: then nobody finds more before him than is done in d (the delay bound of network calculus: Le Boudec and
Thiran, "Network Calculus", 1.4). So a window of s seconds that brought W replica-seconds takes W / (s + d) replicas; of
all lengths a few are looked at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.window import PANIC_S, STABLE_S, Sample
from control_plane.endpoints.minutes import KEPT_S, MINUTE_S, Minute

LATELY_S = 20.0
"""What was needed so lately is not taken away; a start takes about so long where it takes long."""
SWINGS = 1.5
"""So many standard deviations above the mean of the last minutes' needs are kept. On Azure's traces (first halves, 20 s
starts) with 1.0, 1.5 and 2.0: see `ebb simulate scale`."""
SLACK_S = 0.5
"""Samples are about 2 s apart: those of a burst may be spread so much wider."""
Past = tuple[float, float, float]
"""(Unix seconds of a minute's beginning, replicas that it needed, replica-seconds of work in it)."""


@dataclass(frozen=True)
class Needs:
    """In replicas. `busy` is requests in hand. Several gateways' are added: `together`."""

    now: float
    """By the windows that end with the last sample."""
    lately: float
    """The most that a window of PANIC_S which ended in the last LATELY_S needed, or one that ends now."""
    busy: float
    """The most requests in hand that such a window had in its mean."""
    most: float
    """The most that were at work at once, in the mean of a window of PANIC_S of the last STABLE_S, were none to wait."""
    past: tuple[Past, ...] = ()

    def usual(self) -> tuple[float, float]:
        """(mean, standard deviation) of what the last minutes needed, each minute counted by its work: who comes is
        mostly one of many, and it is of those who come that a share is to be in time. (0, 0) where there was no work.
        """
        total = sum(work for _, _, work in self.past)
        if total <= 0.0:
            return 0.0, 0.0
        mean = sum(need * work for _, need, work in self.past) / total
        square = sum((need - mean) ** 2 * work for _, need, work in self.past) / total
        return mean, math.sqrt(square)


def needs(known: Sequence[Sample], minutes: Sequence[Minute], bears: Bearing, now: float) -> Needs | None:
    """Of one gateway, from samples of one life of it (window.py); None where fewer than two moments are known."""
    if len(known) < 2:
        return None
    by_prompt, by_answer, wait_s = 1.0 / bears.prefill_per_s, 1.0 / bears.decode_per_s, bears.wait_s
    at_s = [one[0] for one in known]
    work = [one[2] * by_prompt + one[3] * by_answer for one in known]
    hand = [one[1] for one in known]
    end_s = at_s[-1]
    running = math.floor(now / MINUTE_S) * MINUTE_S
    stretch = PANIC_S / (PANIC_S + wait_s)
    lately_from, stable_from = end_s - LATELY_S, end_s - STABLE_S
    lately = busy = most = last = since = latest = 0.0
    first = 0
    for one in range(1, len(at_s)):
        ends = at_s[one]
        begin = ends - PANIC_S - SLACK_S
        while at_s[first] < begin and first < one - 1:
            first += 1
        if ends < stable_from:
            continue
        span_s = ends - at_s[first]
        if span_s < PANIC_S:
            span_s = PANIC_S
        last = (work[one] - work[first]) / span_s
        if last > most:
            most = last
        if ends > lately_from:
            lately = max(lately, last)
            busy = max(busy, (hand[one] - hand[first]) / span_s)
        if ends >= running:
            since = max(since, last)
            latest += work[one] - work[one - 1]
    windows = [_over(at_s, work, length_s, wait_s) for length_s in (LATELY_S, STABLE_S)]
    now_needs = max(last * stretch, *windows)
    past = [(minute[0], *_of(minute, by_prompt, by_answer, wait_s)) for minute in minutes if minute[0] > now - KEPT_S]
    if latest > 0.0:
        past.append((running, max(since * stretch, now_needs), latest))
    return Needs(now_needs, max(lately * stretch, now_needs), busy, most, tuple(past))


def together(each: Sequence[Needs | None]) -> Needs | None:
    """Those of several gateways; None where one of them is not known."""
    known = [one for one in each if one is not None]
    if not each or len(known) < len(each):
        return None
    if len(known) == 1:
        return known[0]
    minutes: dict[float, tuple[float, float]] = {}
    for one in known:
        for begin, need, work in one.past:
            before = minutes.get(begin, (0.0, 0.0))
            minutes[begin] = before[0] + need, before[1] + work
    return Needs(
        sum(one.now for one in known),
        sum(one.lately for one in known),
        sum(one.busy for one in known),
        sum(one.most for one in known),
        tuple((begin, need, work) for begin, (need, work) in minutes.items()),
    )


def _over(at_s: Sequence[float], work: Sequence[float], length_s: float, wait_s: float) -> float:
    first = len(at_s) - 2
    begin = at_s[-1] - length_s - SLACK_S
    while first > 0 and at_s[first - 1] >= begin:
        first -= 1
    return (work[-1] - work[first]) / (max(PANIC_S, at_s[-1] - at_s[first]) + wait_s)


def _of(minute: Minute, by_prompt: float, by_answer: float, wait_s: float) -> tuple[float, float]:
    work = minute[1] * by_prompt + minute[2] * by_answer
    burst = (minute[3] * by_prompt + minute[4] * by_answer) * PANIC_S / (PANIC_S + wait_s)
    return max(burst, work / (MINUTE_S + wait_s)), work
