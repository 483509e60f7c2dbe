"""How many replicas an endpoint should have. Pure; knows nothing of rows, loops, nodes or what a replica is.

A policy takes what was observed and the time, and returns a number with its reason. "No data" is a value: while no
gateway reports, what is stays.
"""

import math
from dataclasses import dataclass

FRESH_S = 12.0
"""A gateway reports at least every 5 s: one that has missed two reports is not heard."""
CALL_OFF_S = 5.0
"""A start that nobody waits for any more goes on this long: a client that tries again at once finds it under way."""


@dataclass(frozen=True)
class Limits:
    """What the user asked for. `target` is the requests one replica should have at once."""

    min: int
    max: int
    idle_s: float
    target: int


@dataclass(frozen=True)
class GatewayDemand:
    """The last report of one gateway on one endpoint; times in Unix seconds."""

    running: int
    waiting: int
    reported_at: float


@dataclass(frozen=True)
class Observation:
    """One endpoint at one time; times in Unix seconds, None for never."""

    desired: int
    """What was decided last."""
    starting: int
    """Replicas on the way to ready."""
    demand: tuple[GatewayDemand, ...] = ()
    last_work_at: float | None = None
    """When the last request ended, by any gateway's word."""
    last_wake_at: float | None = None
    last_ready_at: float | None = None
    """When a replica last became ready: the time it took to start is not idleness."""
    promised_until: float | None = None
    """Until then someone counts on a start though no request waits for it."""
    serving: int = 0
    """Replicas that take requests."""

    @property
    def is_waking(self) -> bool:
        """Whether the start that was last asked for has served nobody yet. A replacement is no such start."""
        asked, ready = self.last_wake_at, self.last_ready_at
        return self.serving == 0 and asked is not None and (ready is None or ready < asked)


@dataclass(frozen=True)
class Decision:
    """The number, and why, in words for an event. `again_s`: seconds after which time alone may change it."""

    desired: int
    reason: str
    again_s: float = math.inf


def decide(observed: Observation, limits: Limits, now: float) -> Decision:
    """The number of replicas at `now`: within min and max, never fewer than before while there is work."""
    kept = _within(observed.desired, limits)
    fresh = [report for report in observed.demand if now - report.reported_at <= FRESH_S]
    running = sum(report.running for report in fresh)
    waiting = sum(report.waiting for report in fresh)
    load = running + waiting
    if load > 0:
        return _with_work(kept, running, waiting, limits)
    if kept != observed.desired:
        return Decision(kept, f"The limits are now min {limits.min} and max {limits.max}.")
    if kept == limits.min:
        return Decision(kept, "Nothing to do.")
    if not fresh:
        return Decision(kept, "No gateway reports: what is stays.")
    quiet_s = _quiet_s(observed, now)
    if observed.is_waking:
        return _waking(kept, observed, limits, quiet_s, now)
    if quiet_s < limits.idle_s:
        return Decision(kept, f"Idle for {quiet_s:.1f} s of {limits.idle_s:g} s.", limits.idle_s - quiet_s)
    return Decision(limits.min, f"No work for {limits.idle_s:g} s.")


def _waking(kept: int, observed: Observation, limits: Limits, quiet_s: float, now: float) -> Decision:
    """A start is called off soon after the last one has gone who waited for it."""
    promised_s = 0.0 if observed.promised_until is None else observed.promised_until - now
    left_s = max(CALL_OFF_S - quiet_s, promised_s)
    if left_s > 0:
        return Decision(kept, f"Nobody waits for the start: it is called off in {left_s:.1f} s.", left_s)
    return Decision(limits.min, "The start was called off: nobody waits any more.")


def _with_work(kept: int, running: int, waiting: int, limits: Limits) -> Decision:
    needed = math.ceil((running + waiting) / limits.target)
    desired = _within(max(kept, needed, 1), limits)
    if desired > kept:
        return Decision(
            desired,
            f"{running} running and {waiting} waiting requests, {limits.target} to a replica, need {needed} "
            f"(min {limits.min}, max {limits.max}).",
        )
    return Decision(desired, f"{running} running and {waiting} waiting requests.")


def _within(count: int, limits: Limits) -> int:
    return max(limits.min, min(limits.max, count))


def _quiet_s(observed: Observation, now: float) -> float:
    moments = (observed.last_work_at, observed.last_wake_at, observed.last_ready_at)
    last = max((moment for moment in moments if moment is not None), default=None)
    return math.inf if last is None else max(0.0, now - last)
