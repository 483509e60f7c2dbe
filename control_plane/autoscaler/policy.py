"""How many replicas an endpoint should have. Pure; knows nothing of rows, loops, nodes or what a replica is.

A policy takes what was observed and the time, and returns a number with its reason. "No data" is a value: while no
gateway reports, what is stays. Requests in hand count at once, those that wait in a gateway like those that run. Where
the endpoint has a latency to hold, its work counts as well (needs.py): what it takes now, and what the last minutes took
together with how much they swung, for a start takes longer than a burst; and those do not count who will have had their
turn in time. Fewer are wanted only after a whole stable window, and only what would still have held the latency.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.needs import LATELY_S, SWINGS, Needs
from control_plane.autoscaler.needs import together as needs_together
from control_plane.autoscaler.window import STABLE_S, Rates, together

FRESH_S = 12.0
"""A gateway reports at least every 5 s: one that has missed two reports is not heard."""
CALL_OFF_S = 5.0
"""A start that nobody waits for any more goes on this long: a client that tries again at once finds it under way."""
DOWN_SHARE = 0.8
"""Those that remain must have been this busy at most: growing again needs a quarter more work than shrinking left."""
ROUNDING = 1e-6
DOWN_WAITING = 1.2
"""Where there is a latency to hold, so many times what they run at once may those that remain have had in hand: a few
may wait. On Azure's conversations 1.5 let too many go, and 1.0 held a tenth more for nothing."""


@dataclass(frozen=True)
class Limits:
    """What the user asked for. `target` is the requests one replica should have at once; `bears` what it bears within
    the latency that the endpoint is to hold, None where there is none to hold or nothing was measured."""

    min: int
    max: int
    idle_s: float
    target: int
    bears: Bearing | None = None


@dataclass(frozen=True)
class GatewayDemand:
    """The last report of one gateway on one endpoint; times in Unix seconds. The rates are those of window.py: of the
    stable window, and the most that a panic window within it had, which only counts without a latency to hold; with
    one, `needs` does."""

    running: int
    waiting: int
    reported_at: float
    kv_tokens: int = 0
    stable: Rates | None = None
    peak: Rates | None = None
    needs: Needs | None = None


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
    raised_at: float | None = None
    """When more were last wanted than before."""
    answers_per_s: float = 0.0
    """Of the last minute: so fast have those their turn who wait."""

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
    if running + waiting > 0:
        return _with_work(kept, fresh, observed, limits, now)
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
        fewer = _fewer(kept, fresh, observed, limits, now)
        idle = Decision(kept, f"Idle for {quiet_s:.1f} s of {limits.idle_s:g} s.", limits.idle_s - quiet_s)
        return fewer or idle
    return Decision(limits.min, f"No work for {limits.idle_s:g} s.")


def _waking(kept: int, observed: Observation, limits: Limits, quiet_s: float, now: float) -> Decision:
    """A start is called off soon after the last one has gone who waited for it."""
    promised_s = 0.0 if observed.promised_until is None else observed.promised_until - now
    left_s = max(CALL_OFF_S - quiet_s, promised_s)
    if left_s > 0:
        return Decision(kept, f"Nobody waits for the start: it is called off in {left_s:.1f} s.", left_s)
    return Decision(limits.min, "The start was called off: nobody waits any more.")


def _with_work(
    kept: int, fresh: Sequence[GatewayDemand], observed: Observation, limits: Limits, now: float
) -> Decision:
    running, waiting = sum(report.running for report in fresh), sum(report.waiting for report in fresh)
    in_time = 0.0 if limits.bears is None else min(waiting, observed.answers_per_s * limits.bears.wait_s)
    needed, why = math.ceil((running + waiting - in_time) / limits.target), f"{limits.target} to a replica"
    by_work = None if limits.bears is None else _by_work(fresh, limits.bears)
    if by_work is not None and by_work[0] > needed:
        needed, why = by_work
    desired = _within(max(kept, needed, 1), limits)
    if desired > kept:
        return Decision(
            desired,
            f"{running} running and {waiting} waiting requests, {why}, need {needed} "
            f"(min {limits.min}, max {limits.max}).",
        )
    fewer = _fewer(kept, fresh, observed, limits, now, at_least=needed)
    return fewer or Decision(desired, f"{running} running and {waiting} waiting requests.")


def _by_work(fresh: Sequence[GatewayDemand], bears: Bearing) -> tuple[int, str] | None:
    """Replicas that the work itself needs, and its figures. The KV that is held counts as it is now."""
    stable, needs = together([one.stable for one in fresh]), needs_together([one.needs for one in fresh])
    if stable is None or needs is None:
        return None
    kv_tokens = sum(report.kv_tokens for report in fresh)
    mean, swing = needs.usual()
    now, kept_for = max(needs.now, kv_tokens / bears.kv_tokens), mean + SWINGS * swing
    if kept_for > now:
        return _rounded(kept_for), (
            f"and the last minutes' work, which needed {mean:.1f} give or take {swing:.1f} where one bears {bears}"
        )
    return _rounded(now), f"and {_figures(stable, kv_tokens)} where one bears {bears}"


def _fewer(
    kept: int, fresh: Sequence[GatewayDemand], observed: Observation, limits: Limits, now: float, at_least: int = 0
) -> Decision | None:
    """Fewer, but one, where they would have held what there was lately; else None."""
    if kept <= max(limits.min, 1) or (observed.raised_at is not None and now - observed.raised_at < STABLE_S):
        return None
    held = _held_by_fewer(fresh, limits)
    if held is None:
        return None
    desired = _within(max(at_least, held[0], 1), limits)
    if desired >= kept:
        return None
    return Decision(desired, f"{held[1]}: {desired} of {kept} replicas would have held it.")


def _held_by_fewer(fresh: Sequence[GatewayDemand], limits: Limits) -> tuple[int, str] | None:
    """How many would have held it, and what; None where no whole minute is known."""
    if limits.bears is None:
        peak = together([one.peak for one in fresh])
        if peak is None or not peak.is_whole(STABLE_S):
            return None
        return math.ceil(peak.concurrency / limits.target / DOWN_SHARE), (
            f"At most {peak.concurrency:.1f} requests at once in the last {STABLE_S:g} s"
        )
    stable, needs = together([one.stable for one in fresh]), needs_together([one.needs for one in fresh])
    by_work = _by_work(fresh, limits.bears)
    if stable is None or needs is None or by_work is None or not stable.is_whole(STABLE_S):
        return None
    held = max(by_work[0], _rounded(max(needs.lately, needs.busy / limits.target / DOWN_WAITING)))
    mean, swing = needs.usual()
    return held, (
        f"At most {needs.busy:.1f} requests at once and work for {needs.lately:.1f} replicas in the last {LATELY_S:g} s, "
        f"and for {mean:.1f} give or take {swing:.1f} in the last minutes"
    )


def _rounded(replicas: float) -> int:
    return math.ceil(replicas - ROUNDING)


def _figures(rates: Rates, kv_tokens: int) -> str:
    return (
        f"{rates.prefill_per_s:.0f} tokens/s of prompts, {rates.decode_per_s:.0f} of answers and {kv_tokens} held in KV"
    )


def _within(count: int, limits: Limits) -> int:
    return max(limits.min, min(limits.max, count))


def _quiet_s(observed: Observation, now: float) -> float:
    moments = (observed.last_work_at, observed.last_wake_at, observed.last_ready_at)
    last = max((moment for moment in moments if moment is not None), default=None)
    return math.inf if last is None else max(0.0, now - last)
