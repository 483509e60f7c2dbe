"""From what gateways told of an endpoint to the demand that the policy looks at, with no more windows than it needs.
Pure; knows no rows, clock or gateways."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from control_plane.autoscaler.policy import DOWN_SHARE, GatewayDemand, Limits
from control_plane.autoscaler.window import PANIC_S, STABLE_S, Sample, peak, rates, together


@dataclass(frozen=True)
class Told:
    """The last word of one gateway; times in Unix seconds, `samples` as window.py takes them."""

    running: int
    waiting: int
    heard_at: float
    kv_tokens: int = 0
    samples: Sequence[Sample] = ()

    @property
    def is_idle(self) -> bool:
        """It has no work: its counters stand still."""
        return not self.running + self.waiting


def demand_of(told: Sequence[Told], desired: int, limits: Limits, now: float) -> tuple[GatewayDemand, ...]:
    """The demand of each. Rates are looked at where there is a latency to hold or there may be fewer replicas, and the
    peak, which costs the most, only where the mean does not forbid fewer already."""
    may_be_fewer = desired > max(1, limits.min)
    if not may_be_fewer and limits.bears is None:
        return tuple(GatewayDemand(one.running, one.waiting, one.heard_at, one.kv_tokens) for one in told)
    demand = tuple(_with_rates(one, now, panic=limits.bears is not None) for one in told)
    if not may_be_fewer or not _mean_allows_fewer(demand, desired, limits):
        return demand
    return tuple(
        replace(seen, peak=peak(one.samples, now, is_idle=one.is_idle)) for seen, one in zip(demand, told, strict=True)
    )


def _with_rates(one: Told, now: float, *, panic: bool) -> GatewayDemand:
    stable = rates(one.samples, STABLE_S, now, is_idle=one.is_idle)
    lately = rates(one.samples, PANIC_S, now, is_idle=one.is_idle) if panic else None
    return GatewayDemand(one.running, one.waiting, one.heard_at, one.kv_tokens, stable, lately)


def _mean_allows_fewer(demand: Sequence[GatewayDemand], desired: int, limits: Limits) -> bool:
    known = [one.stable for one in demand if one.stable is not None]
    mean = together(known)
    if mean is None:
        return False
    busy = mean.concurrency / limits.target
    if limits.bears is not None:
        busy = max(busy, limits.bears.replicas(mean, sum(one.kv_tokens for one in demand)))
    return math.ceil(busy / DOWN_SHARE) < desired
