"""From what gateways told of an endpoint to the demand that the policy looks at, with no more windows than it needs.
Pure; knows no rows, clock or gateways."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.needs import needs
from control_plane.autoscaler.policy import DOWN_SHARE, GatewayDemand, Limits
from control_plane.autoscaler.window import STABLE_S, mean, peak, rates, together
from control_plane.endpoints.minutes import Kept, split


@dataclass(slots=True)
class Told:
    """The last word of one gateway; times in Unix seconds, `samples` as endpoints/minutes.py keeps them."""

    running: int
    waiting: int
    heard_at: float
    kv_tokens: int = 0
    samples: Kept = ()

    @property
    def is_idle(self) -> bool:
        """It has no work: its counters stand still."""
        return not self.running + self.waiting


def demand_of(told: Sequence[Told], desired: int, limits: Limits, now: float) -> tuple[GatewayDemand, ...]:
    """The demand of each. With a latency to hold, all windows are looked at; without one, rates only where there may be
    fewer replicas, and the peak, which costs the most, only where the mean does not forbid fewer already."""
    if limits.bears is not None:
        bears = limits.bears
        return tuple([_with_needs(one, bears, now) for one in told])
    plain = tuple(GatewayDemand(one.running, one.waiting, one.heard_at, one.kv_tokens) for one in told)
    if desired <= max(1, limits.min):
        return plain
    kept = [split(one.samples)[1] for one in told]
    demand = tuple(
        replace(seen, stable=rates(samples, STABLE_S, now, is_idle=one.is_idle))
        for seen, one, samples in zip(plain, told, kept, strict=True)
    )
    if not _mean_allows_fewer(demand, desired, limits):
        return demand
    return tuple(
        replace(seen, peak=peak(samples, now, is_idle=one.is_idle))
        for seen, one, samples in zip(demand, told, kept, strict=True)
    )


def _with_needs(one: Told, bears: Bearing, now: float) -> GatewayDemand:
    minutes, samples = split(one.samples)
    needed = needs(samples, minutes, bears, now, is_idle=one.is_idle)
    if one.is_idle and samples and samples[-1][0] < now:
        samples = [*samples, (now, *samples[-1][1:])]
    minute = mean(samples, STABLE_S)
    return GatewayDemand(one.running, one.waiting, one.heard_at, one.kv_tokens, minute, None, needed)


def _mean_allows_fewer(demand: Sequence[GatewayDemand], desired: int, limits: Limits) -> bool:
    seen = together([one.stable for one in demand if one.stable is not None])
    return seen is not None and math.ceil(seen.concurrency / limits.target / DOWN_SHARE) < desired
