"""How much load a fleet bears, and a workload spread so that it offers a share of that.

A replica's step budget is spent on prompt tokens that no cache held and on tokens decoded. The fleet is *saturated*
when sessions start at the rate at which these take all of every replica's budget behind the ideal router: one that has
all the replicas' blocks as one cache, and sends each request where the least is to be computed before it. A load of 0.7
is 70 % of that rate.

In a closed loop this rate has to be sought. Requests wait, so sessions last longer, more of them run side by side, and
more of their blocks are evicted between two requests: the work grows as starts get denser, and past some rate several
times over at once. So the ideal router is replayed, queues and all. Work counted where nobody waits says nothing of
saturation, and spreading starts by the work of the spread before leaps from far too dense to far too sparse and back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, log

from control_plane.simulator.ideal import pooled
from control_plane.simulator.policies import LeastWork
from control_plane.simulator.replay import Setting, replay
from control_plane.simulator.settings import ReplicaSettings
from control_plane.simulator.workload import Workload

MOST_REQUESTS = 25_000
"""Of repeated sessions: a replay of more takes minutes."""
CLOSE = 0.01
"""So far from saturation, or from the span that saturates, the search ends: what is within is chance."""
_MOST_STEPS = 24


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A workload at the load asked for."""

    workload: Workload
    saturation_per_s: float
    """Requests a second at which the fleet is saturated."""


def at_load(
    workload: Workload, load: float, replicas: int, cache_blocks: int, settings: ReplicaSettings, seed: int = 0
) -> Calibrated:
    """The workload with its sessions' starts spread so that it offers `load` of what saturates the fleet.

    Sessions of many requests that all start within less time than one of them lasts would never run at that load
    together: they are repeated then, with names of their own, until they do or there are `MOST_REQUESTS`.
    """
    requests = sum(1 for _ in workload.requests())
    if len(workload.sessions) == requests:
        # the order is given, and with it what is found
        work = pooled(workload.requests(), replicas * cache_blocks, workload.block_tokens).work_tokens
        saturated_s = work / (replicas * settings.prefill_tokens_per_s)
        return Calibrated(workload.over(saturated_s / load), requests / saturated_s)
    setting = Setting(replicas, cache_blocks, settings, seed=seed, is_pooled=True)
    lasts_s = _usual_length_s(workload, settings)
    saturated_s = _saturated_s(workload, setting, lasts_s)
    times = max(1, min(ceil(lasts_s * load / saturated_s), MOST_REQUESTS // requests))
    if times > 1:
        workload = workload.repeated(times, seed)
        saturated_s = _saturated_s(workload, setting, times * saturated_s)
    return Calibrated(workload.over(saturated_s / load), times * requests / saturated_s)


def offered(workload: Workload, setting: Setting) -> float:
    """What the ideal router leaves to be computed, as a share of what the fleet can in the time that sessions start."""
    outcome = replay(workload, LeastWork, setting, lambda _done: None)
    return sum(outcome.work_tokens) / (setting.replicas * setting.settings.prefill_tokens_per_s * workload.span_s)


def _saturated_s(workload: Workload, setting: Setting, guess_s: float) -> float:
    """The time over which the sessions start when the fleet is saturated."""
    return exp(_root(lambda span: log(offered(workload.over(exp(span)), setting)), log(guess_s)))


def _root(excess: Callable[[float], float], guess: float) -> float:
    """Where `excess`, which falls as what it is given grows, about one for one or faster, is nearly zero.

    Secants between a point on either side, one of which is given less weight while it stays (Illinois); kept off the
    ends, because it may fall like a cliff.
    """
    low = high = guess
    low_y = high_y = excess(guess)
    while low_y < 0:
        high, high_y, low = low, low_y, low + max(low_y, -1.0) - CLOSE
        low_y = excess(low)
    while high_y > 0:
        low, low_y, high = high, high_y, high + min(high_y, 1.0) + CLOSE
        high_y = excess(high)
    for _ in range(_MOST_STEPS):
        if high - low <= CLOSE:
            break
        margin = (high - low) / 10
        point = min(max(low + (high - low) * low_y / (low_y - high_y), low + margin), high - margin)
        y = excess(point)
        if abs(y) <= CLOSE:
            return point + y
        if y > 0:
            low, low_y, high_y = point, y, high_y / 2
        else:
            high, high_y, low_y = point, y, low_y / 2
    return high


def _usual_length_s(workload: Workload, settings: ReplicaSettings) -> float:
    """How long the middle one of the sessions lasts where it never waits and all is found."""
    lengths = sorted(
        sum(request.think_s + request.output_tokens * settings.step_s for request in session.requests)
        for session in workload.sessions
    )
    return lengths[len(lengths) // 2]
