"""How many replicas an endpoint should have. Pure; knows nothing of rows, loops, nodes or what a replica is.

A policy takes what was observed and the time, and returns a number with its reason. "No data" is a value: while no
gateway reports, what is stays. Requests in hand count at once, those that wait in a gateway like those that run. Where
the endpoint has a latency to hold, its work counts as well (needs.py): what it takes now, and what the last minutes
took with as much again as they differed by, for a start takes longer than a burst; and those do not count who will have
had their turn in time. Fewer are wanted only once a whole stable window is known, and only if they still hold it all.
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
DOWN_WAITING = 1.1
"""Where there is a latency to hold, so many times what they run at once may those that remain have had in hand: a few
may wait. On Azure's conversations (needs.py) 1.0 and 1.1: 97.9 % in time at 75 % of the hours, 1.3: 96.9 % at 76 %."""
SOON = 2.0
"""There, who waits does not count if his turn comes, as fast as answers have ended lately, within so many times what he
may wait: starting another replica takes longer, and whoever is too late lets the rest be in time (the gateway's line).
1: 98.2 % of the conversations in time at 81 % of the hours and 95.1 % of the code at 77 %, 2: 97.9 % at 75 % and 95.2 %
at 77 %, 3: 97.6 % at 75 % and 95.3 % at 77 %."""


@dataclass(frozen=True)
class Limits:
    """What the user asked for. `target` is the requests one replica should have at once; `bears` what it bears within
    the latency that the endpoint is to hold, None where there is none to hold or nothing was measured."""

    min: int
    max: int
    idle_s: float
    target: int
    bears: Bearing | None = None


@dataclass(slots=True)
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


@dataclass(slots=True)
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


@dataclass(slots=True)
class Decision:
    """The number, and why, in words for an event. `again_s`: seconds after which time alone may change it."""

    desired: int
    reason: str
    again_s: float = math.inf


def decide(observed: Observation, limits: Limits, now: float) -> Decision:
    """The number of replicas at `now`: within min and max, never fewer than before while there is work."""
    kept = _within(observed.desired, limits)
    fresh = [report for report in observed.demand if now - report.reported_at <= FRESH_S]
    running = sum([report.running for report in fresh])
    waiting = sum([report.waiting for report in fresh])
    if kept == 0 and running and not waiting:
        return Decision(kept, f"{running} running requests end where they are.")
    if running + waiting > 0:
        return _with_work(kept, running, waiting, fresh, observed, limits, now)
    if kept != observed.desired:
        return Decision(kept, f"The limits are now min {limits.min} and max {limits.max}.")
    if kept == limits.min:
        return Decision(kept, "Nothing to do.")
    if not fresh:
        return Decision(kept, "No gateway reports: what is stays.")
    quiet_s = _quiet_s(observed, now)
    if observed.is_waking:
        return _waking(kept, fresh, observed, limits, quiet_s, now)
    if quiet_s < limits.idle_s:
        fewer = _fewer(kept, fresh, _work(fresh, limits), observed, limits, now)
        idle = Decision(kept, f"Idle for {quiet_s:.1f} s of {limits.idle_s:g} s.", limits.idle_s - quiet_s)
        return fewer or idle
    return Decision(limits.min, f"No work for {limits.idle_s:g} s.")


def _waking(
    kept: int, fresh: Sequence[GatewayDemand], observed: Observation, limits: Limits, quiet_s: float, now: float
) -> Decision:
    """A start is called off soon after the last one has gone who waited for it. Not by what gateways reported before it
    was asked for: a control plane that is killed just then has not heard yet who waits."""
    if min(report.reported_at for report in fresh) < (observed.last_wake_at or 0.0):
        return Decision(kept, "A gateway has not reported since the start was asked for: what is stays.")
    promised_s = 0.0 if observed.promised_until is None else observed.promised_until - now
    left_s = max(CALL_OFF_S - quiet_s, promised_s)
    if left_s > 0:
        return Decision(kept, f"Nobody waits for the start: it is called off in {left_s:.1f} s.", left_s)
    return Decision(limits.min, "The start was called off: nobody waits any more.")


def _with_work(
    kept: int,
    running: int,
    waiting: int,
    fresh: Sequence[GatewayDemand],
    observed: Observation,
    limits: Limits,
    now: float,
) -> Decision:
    work = _work(fresh, limits)
    in_time = 0.0 if limits.bears is None else min(waiting, observed.answers_per_s * SOON * limits.bears.wait_s)
    by_count = math.ceil((running + waiting - in_time) / limits.target)
    needed = by_count if work is None else max(by_count, work.needed)
    desired = _within(max(kept, needed, 1), limits)
    if desired > kept:
        why = f"{limits.target} to a replica" if work is None or needed == by_count else work.why
        return Decision(
            desired,
            f"{running} running and {waiting} waiting requests, {why}, need {needed} "
            f"(min {limits.min}, max {limits.max}).",
        )
    fewer = _fewer(kept, fresh, work, observed, limits, now, at_least=needed)
    return fewer or Decision(desired, f"{running} running and {waiting} waiting requests.")


@dataclass(slots=True)
class _Work:
    """What the work of all gateways takes of an endpoint that has a latency to hold."""

    bears: Bearing
    minute: Rates
    needs: Needs
    kv_tokens: int
    usual: float
    swing: float

    @property
    def now(self) -> float:
        """Replicas that the work takes as it is. The KV that is held counts as it is now."""
        return max(self.needs.now, self.kv_tokens / self.bears.kv_tokens)

    @property
    def expected(self) -> float:
        """Replicas that are kept for what comes sooner than a start takes."""
        return self.usual + SWINGS * self.swing

    @property
    def needed(self) -> int:
        """The more of both."""
        return _rounded(max(self.now, self.expected))

    @property
    def why(self) -> str:
        """The figures of what is needed."""
        if self.expected > self.now:
            took = f"took {self.usual:.1f} give or take {self.swing:.1f}"
            return f"and the last minutes' work, which {took} where one bears {self.bears}"
        return f"and {_figures(self.minute, self.kv_tokens)} where one bears {self.bears}"


def _work(fresh: Sequence[GatewayDemand], limits: Limits) -> _Work | None:
    if limits.bears is None:
        return None
    minute, needs = together([one.stable for one in fresh]), needs_together([one.needs for one in fresh])
    if minute is None or needs is None:
        return None
    return _Work(limits.bears, minute, needs, sum([one.kv_tokens for one in fresh]), *needs.usual())


def _fewer(
    kept: int,
    fresh: Sequence[GatewayDemand],
    work: _Work | None,
    observed: Observation,
    limits: Limits,
    now: float,
    at_least: int = 0,
) -> Decision | None:
    """Fewer, but one, where they would have held what there was lately; else None."""
    grown_s = math.inf if observed.raised_at is None else now - observed.raised_at
    if kept <= max(limits.min, 1) or grown_s < (STABLE_S if limits.bears is None else LATELY_S):
        return None
    held = _held_by_count(fresh, limits) if limits.bears is None else _held_by_work(work, limits)
    if held is None:
        return None
    desired = _within(max(at_least, held[0], 1), limits)
    if desired >= kept:
        return None
    return Decision(desired, f"{held[1]}: {desired} of {kept} replicas would have held it.")


def _held_by_count(fresh: Sequence[GatewayDemand], limits: Limits) -> tuple[int, str] | None:
    """How many would have held it, and what; None where no whole minute is known."""
    peak = together([one.peak for one in fresh])
    if peak is None or not peak.is_whole(STABLE_S):
        return None
    return math.ceil(peak.concurrency / limits.target / DOWN_SHARE), (
        f"At most {peak.concurrency:.1f} requests at once in the last {STABLE_S:g} s"
    )


def _held_by_work(work: _Work | None, limits: Limits) -> tuple[int, str] | None:
    if work is None or not work.minute.is_whole(STABLE_S):
        return None
    needs = work.needs
    return max(work.needed, _rounded(max(needs.lately, needs.busy / limits.target / DOWN_WAITING))), (
        f"At most {needs.busy:.1f} requests at once and work for {needs.lately:.1f} in the last {LATELY_S:g} s, and in "
        f"the last minutes for {work.usual:.1f} give or take {work.swing:.1f}"
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
