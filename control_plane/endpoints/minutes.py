"""What is kept of a gateway's counters: samples of the last minute, and of each minute before it what work it had.
Pure; knows no rows, clock or gateways, nor what follows from it.

Both stand in one list, oldest first: minutes of five numbers, then samples of four.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

Sample = Sequence[float]
"""(Unix seconds, busy seconds, prefill tokens, decode tokens), the last three counted since the gateway started."""
Minute = Sequence[float]
"""(Unix seconds of its beginning, prefill tokens, decode tokens, and the most a second of each in any BURST_S)."""
Kept = Sequence[Sequence[float]]

SAMPLE_S = 2.0
SAMPLES_S = 60.0
"""So far apart are samples, and so long are they kept: what autoscaler/window.py looks at."""
MINUTE_S = 60.0
KEPT_S = 900.0
"""Bursts come minutes apart: on Azure's code trace ten minutes lost 1 % of the requests more for 5 % fewer
replica-hours, and half an hour gained nothing."""
BURST_S = 6.0
_SAMPLE_FIELDS = 4


def split(kept: Kept) -> tuple[Sequence[Minute], Sequence[Sample]]:
    """(minutes, samples)."""
    at = bisect_left(kept, -_SAMPLE_FIELDS, key=_fields)
    return kept[:at], kept[at:]


def with_sample(kept: Sequence[Any], latest: Sample) -> list[Any]:
    """One sample more: the last two are one where they are close, and one stays that is older than is asked for, so
    that a whole window always has its beginning. With the first sample of a minute the last one that had work is
    closed. Where a counter fell the gateway began anew, and what it had counted before is not comparable."""
    minutes, samples = split(kept)
    now = latest[0]
    if samples and _fell(samples[-1], latest):
        return [*_closed(minutes, samples, now), latest]
    before = samples[:-1] if len(samples) > 1 and now - samples[-2][0] < SAMPLE_S else samples
    if before and _begin(before[-1][0]) < _begin(now):
        minutes = _closed(minutes, before, now)
    young = next((at for at, sample in enumerate(before) if sample[0] > now - SAMPLES_S), len(before))
    return [*minutes, *before[max(0, young - 1) :], latest]


def _closed(minutes: Sequence[Minute], samples: Sequence[Sample], now: float) -> list[Minute]:
    begin = _begin(samples[-1][0])
    rest = [minute for minute in minutes if minute[0] > now - KEPT_S and minute[0] != begin]
    minute = _minute(samples, begin)
    return [*rest, minute] if minute[1] + minute[2] > 0 else rest


def _minute(samples: Sequence[Sample], begin: float) -> list[float]:
    """Of the minute in which the last sample is."""
    prefill = decode = most_prefill = most_decode = 0.0
    first = 0
    for at in range(1, len(samples)):
        last, one = samples[at - 1], samples[at]
        if one[0] < begin:
            continue
        prefill, decode = prefill + one[2] - last[2], decode + one[3] - last[3]
        while first < at - 1 and samples[first][0] < one[0] - BURST_S - SAMPLE_S / 4:
            first += 1
        span_s = max(BURST_S, one[0] - samples[first][0])
        most_prefill = max(most_prefill, (one[2] - samples[first][2]) / span_s)
        most_decode = max(most_decode, (one[3] - samples[first][3]) / span_s)
    return [begin, round(prefill, 1), round(decode, 1), round(most_prefill, 1), round(most_decode, 1)]


def _fell(one: Sample, other: Sample) -> bool:
    return any(later < before for before, later in zip(one, other, strict=True))


def _fields(entry: Sequence[float]) -> int:
    return -len(entry)


def _begin(at: float) -> float:
    return math.floor(at / MINUTE_S) * MINUTE_S
