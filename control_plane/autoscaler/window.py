"""The work of the last minute and of the last seconds, from samples of counters that only grow. Pure; knows no clock,
rows or gateways.

A counter's difference between two samples is the work between them, whatever reports were lost meanwhile; where it
falls, the gateway began anew and what it had counted is not known. The windows are those of Knative's autoscaler: a
stable one that smooths, and a panic one that is a tenth of it (knative.dev, "Additional autoscaling configuration").
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from control_plane.endpoints.minutes import Sample

STABLE_S = 60.0
PANIC_S = 6.0
SLACK_S = 2.5
"""Samples are 2 s apart: a window that lacks so little is whole."""

_MOMENT = itemgetter(0)


@dataclass(slots=True)
class Rates:
    """Mean work over `span_s` seconds: requests in hand, and tokens a second."""

    concurrency: float
    prefill_per_s: float
    decode_per_s: float
    span_s: float

    def is_whole(self, window_s: float) -> bool:
        """Whether it is of all the window that was asked for."""
        return self.span_s >= window_s - SLACK_S


def rates(samples: Sequence[Sample], window_s: float, now: float, *, is_idle: bool = False) -> Rates | None:
    """The mean work in the `window_s` before the last sample; None where fewer than two moments are known.

    `is_idle`: the gateway has no work since its last sample, so that its counters are the same at `now`.
    """
    return mean(_known(samples, now, is_idle), window_s)


def mean(lived: Sequence[Sample], window_s: float) -> Rates | None:
    """As `rates`, of samples that are known to be of one life of the gateway."""
    return _last(lived, window_s) if len(lived) > 1 else None


def peak(samples: Sequence[Sample], now: float, *, is_idle: bool = False) -> Rates | None:
    """The most that any PANIC_S of the last STABLE_S had of each kind of work; None where fewer than two moments are
    known. Its span is that of all that was looked at."""
    lived = _known(samples, now, is_idle)
    if len(lived) < 2:
        return None
    concurrency = prefill = decode = 0.0
    at, final = 0, lived[-1][0]
    t0, busy0, prefill0, decode0 = lived[0]
    t1, busy1, prefill1, decode1 = lived[1]
    # the sums of `_interpolated`, written out: this is most of what a decision costs
    for last_at, busy, filled, decoded in lived[1:]:
        if last_at <= now - STABLE_S and last_at < final:
            continue
        begin = last_at - PANIC_S
        while t1 <= begin:
            at += 1
            t0, busy0, prefill0, decode0 = t1, busy1, prefill1, decode1
            t1, busy1, prefill1, decode1 = lived[at + 1]
        part = (begin - t0) / (t1 - t0) if begin > t0 else 0.0
        span_s = last_at - t0 - part * (t1 - t0)
        concurrency = max(concurrency, (busy - busy0 - part * (busy1 - busy0)) / span_s)
        prefill = max(prefill, (filled - prefill0 - part * (prefill1 - prefill0)) / span_s)
        decode = max(decode, (decoded - decode0 - part * (decode1 - decode0)) / span_s)
    return Rates(concurrency, prefill, decode, min(STABLE_S, lived[-1][0] - lived[0][0]))


def together(each: Sequence[Rates | None]) -> Rates | None:
    """The work at several gateways; None where one of them is not known. It is as whole as the least whole is."""
    concurrency = prefill = decode = 0.0
    span_s = math.inf
    for one in each:
        if one is None:
            return None
        concurrency += one.concurrency
        prefill += one.prefill_per_s
        decode += one.decode_per_s
        span_s = one.span_s if one.span_s < span_s else span_s
    return Rates(concurrency, prefill, decode, span_s) if each else None


def _known(samples: Sequence[Sample], now: float, is_idle: bool) -> list[Sample]:
    """The samples of one life of the gateway, in order of time, with what is known of `now`."""
    lived: list[Sample] = []
    at = busy = prefill = decode = -math.inf
    for sample in samples:
        if sample[0] <= at:
            continue
        if sample[1] < busy or sample[2] < prefill or sample[3] < decode:
            lived = []
        at, busy, prefill, decode = sample
        lived.append(sample)
    if is_idle and lived and at < now:
        lived.append((now, busy, prefill, decode))
    return lived


def _last(lived: Sequence[Sample], window_s: float) -> Rates:
    """The mean over the window that ends with the last sample, or over as much of it as is lived."""
    last = lived[-1]
    begin = last[0] - window_s
    at = max(0, bisect_right(lived, begin, 0, len(lived) - 1, key=_MOMENT) - 1)
    first = _interpolated(lived, at, begin)
    span_s = last[0] - first[0]
    return Rates((last[1] - first[1]) / span_s, (last[2] - first[2]) / span_s, (last[3] - first[3]) / span_s, span_s)


def _interpolated(lived: Sequence[Sample], at: int, begin: float) -> Sample:
    """The counters at `begin`, which is not after the sample that follows `at`; those of `at` where it is before them
    all. A gateway tells when work begins, so that what lies between two samples is spread evenly enough."""
    first, after = lived[at], lived[at + 1]
    if first[0] >= begin:
        return first
    part = (begin - first[0]) / (after[0] - first[0])
    return (
        begin,
        first[1] + part * (after[1] - first[1]),
        first[2] + part * (after[2] - first[2]),
        first[3] + part * (after[3] - first[3]),
    )
