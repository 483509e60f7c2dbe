"""How many replicas an endpoint's work takes for its latency to be held: now, at the most lately, and in each of the
last minutes. Pure; knows no rows, clock or gateways, nor what is decided by it.

Where a prompt may wait `d` seconds, n replicas hold that exactly if no window of any length s brings more work than
they do in s + d: then nobody finds more before him than is done in d (the delay bound of network calculus: Le Boudec
and Thiran, "Network Calculus", 1.4). So a window of s seconds that brought W replica-seconds takes W / (s + d)
replicas; of all lengths a few are looked at.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.window import PANIC_S, STABLE_S, Sample
from control_plane.endpoints.minutes import KEPT_S, MINUTE_S, Minute

LATELY_S = 20.0
"""What was needed so lately is not taken away; a start takes about so long where it takes long."""
MOST, SWINGS = 0.6, 0.7
"""Kept are the replicas within which so much of the last minutes' work was done, and so many times more as the
minutes' needs have standard deviations in their mean. In time (TTFT 5 s), at replica-hours as a share of Knative's, on
Azure's code, means of starts of 19.8 to 20.2 s: 0.5 and 0.7: 91.1 % at 70 %; 0.6 and 0.5: 94.9 % at 81 % (one of five
learned too much of one minute: 94.1 to 97.3 %); 0.6 and 0.7: 95.2 % at 77 %; 0.6 and 0.9: 95.6 % at 81 %; 0.7 and 0.7:
95.5 % at 89 %. Azure's conversations hardly swing: 97.7 to 97.9 % at 75 % with any of these."""
SLACK_S = 0.5
"""Samples are about 2 s apart: those of a burst may be spread so much wider."""
_BEGIN, _NEED = itemgetter(0), itemgetter(1)
Past = tuple[float, float, float]
"""(Unix seconds of a minute's beginning, replicas that it needed, replica-seconds of work in it)."""


@dataclass(slots=True)
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
        usual, done = 0.0, 0.0
        for _, need, work in sorted(self.past, key=_NEED):
            if done < MOST * total:
                usual = need
            done += work
        return usual, usual * swing


def needs(
    samples: Sequence[Sample], minutes: Sequence[Minute], bears: Bearing, now: float, *, is_idle: bool = False
) -> Needs | None:
    """Of one gateway, from what endpoints/minutes.py keeps of it; None where fewer than two moments are known.
    `is_idle`: it has no work since its last sample."""
    if len(samples) < 2:
        return None
    # minutes are closed by samples: the one with the last sample is still open, however long ago that was
    running = samples[-1][0] - samples[-1][0] % MINUTE_S
    if is_idle and samples[-1][0] < now:
        samples = [*samples, (now, *samples[-1][1:])]
    by_prompt, by_answer, wait_s = 1.0 / bears.prefill_per_s, 1.0 / bears.decode_per_s, bears.wait_s
    stretch = PANIC_S / (PANIC_S + wait_s)
    at_s = [one[0] for one in samples]
    lately_at = max(1, bisect_right(at_s, at_s[-1] - LATELY_S))
    running_at = max(1, bisect_left(at_s, running))
    # what was before is in the minutes: only what ends later is looked at again
    begin_at = min(lately_at, running_at)
    origin = first = bisect_left(at_s, at_s[begin_at] - PANIC_S - SLACK_S, 0, begin_at - 1)
    work = [each[2] * by_prompt + each[3] * by_answer for each in samples[origin:]]
    bursts: list[float] = []
    busy = 0.0
    for one in range(begin_at, len(at_s)):
        ends = at_s[one]
        begin = ends - PANIC_S - SLACK_S
        while at_s[first] < begin and first < one - 1:
            first += 1
        span_s = ends - at_s[first]
        if span_s < PANIC_S:
            span_s = PANIC_S
        bursts.append((work[one - origin] - work[first - origin]) / span_s)
        if one >= lately_at:
            hand = (samples[one][1] - samples[first][1]) / span_s
            if hand > busy:
                busy = hand
    total, begun = work[-1], work[running_at - 1 - origin]
    now_needs = bursts[-1] * stretch
    for length_s in (LATELY_S, STABLE_S):
        at = bisect_left(at_s, at_s[-1] - length_s - SLACK_S, 0, len(at_s) - 2)
        over_s = max(PANIC_S, at_s[-1] - at_s[at]) + wait_s
        now_needs = max(now_needs, (total - samples[at][2] * by_prompt - samples[at][3] * by_answer) / over_s)
    even, burst_p, burst_a, oldest = 1.0 / (MINUTE_S + wait_s), by_prompt * stretch, by_answer * stretch, now - KEPT_S
    past: list[Past] = [
        (began, mean if (mean := done * even) > (most := prompts * burst_p + answers * burst_a) else most, done)
        for began, prefill, decode, prompts, answers in minutes
        if began > oldest and (done := prefill * by_prompt + decode * by_answer) > 0.0
    ]
    if total > begun:
        most = max(bursts[running_at - begin_at :]) * stretch
        past.append((running, max(most, now_needs, (total - begun) * even), total - begun))
    return Needs(now_needs, max(max(bursts[lately_at - begin_at :]) * stretch, now_needs), busy, tuple(past))


def together(each: Sequence[Needs | None]) -> Needs | None:
    """Those of several gateways; None where one of them is not known."""
    now = lately = busy = 0.0
    past: tuple[Past, ...] = ()
    for one in each:
        if one is None:
            return None
        now, lately, busy = now + one.now, lately + one.lately, busy + one.busy
        past = _added(past, one.past) if past else one.past
    return Needs(now, lately, busy, past) if each else None


def _added(one: tuple[Past, ...], other: tuple[Past, ...]) -> tuple[Past, ...]:
    if len(one) == len(other) and list(map(_BEGIN, one)) == list(map(_BEGIN, other)):
        return tuple([(at, a + b, c + d) for (at, a, c), (_, b, d) in zip(one, other, strict=True)])
    minutes = {minute[0]: minute for minute in one}
    for at, need, work in other:
        _, known_need, known_work = minutes.get(at, (at, 0.0, 0.0))
        minutes[at] = at, known_need + need, known_work + work
    return tuple(minutes.values())
