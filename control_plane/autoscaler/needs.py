"""How many replicas an endpoint's work takes for its latency to be held: now, at the most lately, and in each of the
last minutes. Pure; knows no rows, clock or gateways, nor what is decided by it.

Where a prompt may wait `d` seconds, n replicas hold that exactly if no window of any length s brings more work than
they do in s + d: then nobody finds more before him than is done in d (the delay bound of network calculus: Le Boudec
and Thiran, "Network Calculus", 1.4). So a window of s seconds that brought W replica-seconds takes W / (s + d)
replicas; of all lengths a few are looked at.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.window import PANIC_S, STABLE_S, Sample
from control_plane.endpoints.minutes import KEPT_S, MINUTE_S, Minute

LATELY_S = 20.0
"""What was needed so lately is not taken away; a start takes about so long where it takes long."""
MOST, SWINGS = 0.6, 0.9
"""NOTE"""
SLACK_S = 0.5
"""Samples are about 2 s apart: those of a burst may be spread so much wider."""
_NEED = itemgetter(1)
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
    past: tuple[Past, ...] = ()

    def most(self, since: float) -> float:
        """The most that a minute needed which began no earlier than that."""
        return max((need for begin, need, _ in self.past if begin >= since), default=0.0)

    def usual(self) -> tuple[float, float]:
        """(what MOST of the work of the last minutes was done within, how much of that the minutes' needs differ by).

        Each minute counts by its work: it is of those who come that a share is to be in time, and many come in few
        minutes. (0, 0) where there was no work.
        """
        total = sum_needs = squares = 0.0
        for _, need, work in self.past:
            total += work
            sum_needs += need * work
            squares += need * need * work
        if sum_needs <= 0.0:
            return 0.0, 0.0
        mean = sum_needs / total
        swing = math.sqrt(max(0.0, squares / total - mean * mean)) / mean
        usual = done = 0.0
        for _, usual, work in sorted(self.past, key=_NEED):
            done += work
            if done >= MOST * total:
                break
        return usual, usual * swing


def needs(samples: Sequence[Sample], minutes: Sequence[Minute], bears: Bearing, now: float) -> Needs | None:
    """Of one gateway, from samples of one life of it, as endpoints/minutes.py keeps them; None where fewer than two
    moments are known."""
    if len(samples) < 2:
        return None
    by_prompt, by_answer, wait_s = 1.0 / bears.prefill_per_s, 1.0 / bears.decode_per_s, bears.wait_s
    stretch = PANIC_S / (PANIC_S + wait_s)
    at_s = [one[0] for one in samples]
    running, lately_from = now - now % MINUTE_S, at_s[-1] - LATELY_S
    # what was before is in the minutes: only what ends later is looked at again
    one = max(1, bisect_left(at_s, min(running, lately_from)))
    first = bisect_left(at_s, at_s[one] - PANIC_S - SLACK_S, 0, one - 1)
    work = [each[2] * by_prompt + each[3] * by_answer for each in samples]
    lately = busy = last = since = 0.0
    begun = work[-1]
    while one < len(at_s):
        ends = at_s[one]
        begin = ends - PANIC_S - SLACK_S
        while first < one - 1 and at_s[first] < begin:
            first += 1
        span_s = ends - at_s[first]
        if span_s < PANIC_S:
            span_s = PANIC_S
        last = (work[one] - work[first]) / span_s
        if ends > lately_from:
            if last > lately:
                lately = last
            hand = (samples[one][1] - samples[first][1]) / span_s
            if hand > busy:
                busy = hand
        if ends >= running:
            if last > since:
                since = last
            if work[one - 1] < begun:
                begun = work[one - 1]
        one += 1
    now_needs = max(last * stretch, *(_over(at_s, work, length_s, wait_s) for length_s in (LATELY_S, STABLE_S)))
    minute_s = MINUTE_S + wait_s
    past: list[Past] = []
    for began, prefill, decode, most_prefill, most_decode in minutes:
        if began <= now - KEPT_S:
            continue
        done = prefill * by_prompt + decode * by_answer
        burst, even = (most_prefill * by_prompt + most_decode * by_answer) * stretch, done / minute_s
        past.append((began, burst if burst > even else even, done))
    if work[-1] > begun:
        past.append((running, max(since * stretch, now_needs), work[-1] - begun))
    return Needs(now_needs, max(lately * stretch, now_needs), busy, tuple(past))


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
        tuple((begin, need, work) for begin, (need, work) in minutes.items()),
    )


def _over(at_s: Sequence[float], work: Sequence[float], length_s: float, wait_s: float) -> float:
    first = bisect_left(at_s, at_s[-1] - length_s - SLACK_S, 0, len(at_s) - 2)
    return (work[-1] - work[first]) / (max(PANIC_S, at_s[-1] - at_s[first]) + wait_s)
