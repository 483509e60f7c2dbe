"""What the autoscaler's decisions cost: its pure files on made-up endpoints, timed. Knows no rows and no platform."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.keepalive import History, Plan, Terms, idle_limit_s, plan
from control_plane.autoscaler.policy import GatewayDemand, Limits, Observation, decide
from control_plane.autoscaler.reports import Told, demand_of
from control_plane.endpoints.minutes import Kept

NOW = 1_764_000_000.0
GATEWAYS = 2
IDLE_TIMES = 40
TERMS = Terms(start_s=3.0, memory_bytes=800_000_000)
LIMITS = Limits(0, 8, 300.0, 32, Bearing(4000.0, 300.0, 40_000.0, 4.0))


@dataclass(frozen=True)
class Cost:
    """Milliseconds of CPU to decide for so many endpoints: all with work, all without, and to plan their idle times."""

    endpoints: int
    working_ms: float
    idle_ms: float
    planning_ms: float


def measure(endpoints: int, rounds: int) -> Cost:
    """Medians of `rounds`."""
    dice = random.Random(endpoints)  # noqa: S311 - made-up endpoints, the same each time
    working = [[_samples(dice) for _ in range(GATEWAYS)] for _ in range(endpoints)]
    histories = [_history(dice) for _ in range(endpoints)]
    plans = [plan(history, TERMS, NOW) for history in histories]
    return Cost(
        endpoints,
        _median_ms(rounds, lambda: [_decide_working(each) for each in working]),
        _median_ms(rounds, lambda: [_decide_idle(each) for each in plans]),
        _median_ms(rounds, lambda: [plan(each, TERMS, NOW) for each in histories]),
    )


def _decide_working(gateways: Sequence[Kept]) -> int:
    demand = demand_of([Told(9, 1, NOW, 900, one) for one in gateways], 3, LIMITS, NOW)
    seen = Observation(3, 0, demand, NOW, NOW - 500, NOW - 490, serving=3, raised_at=NOW - 500)
    return decide(seen, LIMITS, NOW).desired


def _decide_idle(planned: Plan) -> int:
    began = NOW - 20.0
    limits = Limits(0, 8, idle_limit_s(planned, began, began, NOW), 32)
    demand = (GatewayDemand(0, 0, NOW),) * GATEWAYS
    return decide(Observation(1, 0, demand, began, serving=1), limits, NOW).desired


def _samples(dice: random.Random) -> list[Sequence[float]]:
    level, samples = dice.uniform(1, 30), list[Sequence[float]]()
    busy = prefill = decode = 0.0
    minutes = [[NOW - 60 * ago, 3e5 * dice.random(), 3e4 * dice.random(), 9e3, 9e2] for ago in range(16, 1, -1)]
    for step in range(31):
        busy, prefill, decode = busy + 2 * level, prefill + dice.uniform(0, 9000), decode + dice.uniform(0, 900)
        samples.append((NOW - 60 + 2 * step, busy, prefill, decode))
    return [*minutes, *samples]


def _history(dice: random.Random) -> History:
    history, at = History(), NOW - 7 * 86_400.0
    for _ in range(IDLE_TIMES):
        idle_s = dice.expovariate(1 / 3600.0)
        at += idle_s
        history.learn(idle_s, at)
    return history


def _median_ms(rounds: int, work: Callable[[], object]) -> float:
    took: list[float] = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        took.append(1000 * (time.process_time() - began))
    return median(took)
