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


NOTHING = Rates(0.0, 0.0, 0.0, 0.0)


def rates(samples: Sequence[Sample], window_s: float, now: float, *, is_idle: bool = False) -> Rates | None:
    """The mean work in the `window_s` before `now`; None where fewer than two moments are known.

    `is_idle`: the gateway has no work since its last sample, so that its counters are the same at `now`.
    """
    known = _since_restart(samples)
    if is_idle and known and known[-1][0] < now:
        known = [*known, (now, *known[-1][1:])]
    if len(known) < 2:
        return None
    last = known[-1]
    first = next((each for each in reversed(known[:-1]) if each[0] <= last[0] - window_s + SLACK_S / 2), known[0])
    span_s = last[0] - first[0]
    if span_s <= 0.0:
        return None
    busy, prefill, decode = ((last[at] - first[at]) / span_s for at in (1, 2, 3))
    return Rates(busy, prefill, decode, span_s)


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


def _since_restart(samples: Sequence[Sample]) -> list[Sample]:
    start = 0
    for at in range(1, len(samples)):
        if any(now < before for now, before in zip(samples[at], samples[at - 1], strict=True)):
            start = at
    return list(samples[start:])
