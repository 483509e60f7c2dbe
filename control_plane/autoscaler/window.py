"""The work of the last minute and of the last seconds, from samples of counters that only grow. Pure; knows no clock,
rows or gateways.

A counter's difference between two samples is the work between them, whatever reports were lost meanwhile; where it
falls, the gateway began anew and what it had counted is not known. The windows are those of Knative's autoscaler: a
stable one that smooths, and a panic one that is a tenth of it (knative.dev, "Additional autoscaling configuration").
"""

from collections.abc import Sequence
from dataclasses import dataclass

STABLE_S = 60.0
PANIC_S = 6.0
SLACK_S = 2.5
"""Samples are 2 s apart: a window that lacks so little is whole."""
Sample = Sequence[float]
"""(Unix seconds, busy seconds, prefill tokens, decode tokens), the last three counted since the gateway started."""


@dataclass(frozen=True)
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
    known = _known(samples, now, is_idle)
    return _between(known, len(known) - 1, window_s) if len(known) > 1 else None


def peak(samples: Sequence[Sample], now: float, *, is_idle: bool = False) -> Rates | None:
    """The most that any PANIC_S of the last STABLE_S had of each kind of work; None where fewer than two moments are
    known. Its span is that of all that was looked at."""
    known = _known(samples, now, is_idle)
    if len(known) < 2:
        return None
    ends = [end for end in range(1, len(known)) if known[end][0] > now - STABLE_S] or [len(known) - 1]
    parts = [_between(known, end, PANIC_S) for end in ends]
    return Rates(
        max(one.concurrency for one in parts),
        max(one.prefill_per_s for one in parts),
        max(one.decode_per_s for one in parts),
        _between(known, len(known) - 1, STABLE_S).span_s,
    )


def together(each: Sequence[Rates | None]) -> Rates | None:
    """The work at several gateways; None where one of them is not known. It is as whole as the least whole is."""
    known = [one for one in each if one is not None]
    if not each or len(known) < len(each):
        return None
    return Rates(
        sum(one.concurrency for one in known),
        sum(one.prefill_per_s for one in known),
        sum(one.decode_per_s for one in known),
        min(one.span_s for one in known),
    )


def _known(samples: Sequence[Sample], now: float, is_idle: bool) -> list[Sample]:
    """The samples of one life of the gateway, in order of time, with what is known of `now`."""
    known: list[Sample] = []
    for sample in samples:
        if known and sample[0] <= known[-1][0]:
            continue
        if known and any(new < old for new, old in zip(sample, known[-1], strict=True)):
            known = []
        known.append(sample)
    if is_idle and known and known[-1][0] < now:
        known.append((now, *known[-1][1:]))
    return known


def _between(known: Sequence[Sample], end: int, window_s: float) -> Rates:
    """The mean over the window that ends with `known[end]`, or over as much of it as is known. A window that begins
    between two samples begins with what lies between: a gateway tells when work begins, so before that there was none.
    """
    last, begin = known[end], known[end][0] - window_s
    at = end - 1
    while at > 0 and known[at][0] > begin:
        at -= 1
    first, after = known[at], known[at + 1]
    if first[0] < begin:
        part = (begin - first[0]) / (after[0] - first[0])
        first = (begin, *(old + part * (new - old) for old, new in zip(first[1:], after[1:], strict=True)))
    span_s = last[0] - first[0]
    busy, prefill, decode = ((last[value] - first[value]) / span_s for value in (1, 2, 3))
    return Rates(busy, prefill, decode, span_s)
