"""What one replica bears while it holds a latency: estimated from the speed that its artifact was measured to have,
corrected by what was served. Pure; knows no rows, clock or devices.

A replica's time goes to prompts and to answers, so its load is prefill ÷ what it bears of prompts alone + decode ÷ what
it bears of answers alone; at 1 it is as busy as the latency allows. The KV cache is a limit of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from control_plane.autoscaler.window import PANIC_S, STABLE_S, Rates
from control_plane.endpoints.slo import Slo, unmet

PROMPT_TOKENS = 256
"""The prompt that a first estimate takes for usual; what is served corrects it."""
P95_OF_MEAN = -math.log(0.05)
"""In an M/M/1 queue the 95th percentile of the time in it is so many times the mean."""
LEAST_BUSY, MOST_BUSY = 0.2, 1.0
"""What swings is held by what is kept for it (needs.py), so that nothing is left here beyond what queues cost: with a
most of 0.95 Azure's conversations took 3 % more replica-hours, and no more answers were in time."""
KV_FULL = 0.9
"""Beyond this part of its KV cache a replica preempts."""
ANSWERS = 10
"""Fewer ended answers have no 95th percentile to go by."""
LOADED = 0.3
"""A latency that is missed at less load than this is not missed for the load's sake."""
STEP_DOWN, STEP_UP = 0.5, 1.25
"""The most that one correction changes."""
COMFORT = 0.7
"""Where the latency is this part of what is allowed, a loaded replica may bear more: it is tried in steps of TRY."""
TRY = 1.05


@dataclass(frozen=True)
class Bearing:
    """What one replica bears of prompts alone and of answers alone, tokens a second, and KV tokens at once; and how
    long a prompt may wait for its turn."""

    prefill_per_s: float
    decode_per_s: float
    kv_tokens: float = math.inf
    wait_s: float = 0.0

    def replicas(self, rates: Rates, kv_tokens: float = 0.0) -> float:
        """How many replicas that work takes, not rounded."""
        busy = rates.prefill_per_s / self.prefill_per_s + rates.decode_per_s / self.decode_per_s
        return max(busy, kv_tokens / self.kv_tokens)

    def __str__(self) -> str:
        return f"{self.prefill_per_s:.0f} and {self.decode_per_s:.0f} tokens/s"


@dataclass(frozen=True)
class Seen:
    """A minute in which the replicas were the same and nothing waited for one: its work, and its answers' latency."""

    rates: Rates
    replicas: int
    answers: int
    ttft_p95_ms: float | None
    itl_p95_ms: float | None
    most: float = 0.0
    """The most replicas that a burst in it needed, by what was believed: needs.Needs."""


def measured(speed: Mapping[str, float], slo: Slo, concurrency: int) -> Bearing | None:
    """What a replica of that speed (tokens a second: prefill_tps, decode_1_tps, decode_8_tps) should bear; None where
    it was not measured, or cannot hold the latency at all (`slo.unmet`)."""
    prefill, alone = speed.get("prefill_tps", 0.0), speed.get("decode_1_tps", 0.0)
    if prefill <= 0.0 or alone <= 0.0 or unmet(speed, slo) is not None:
        return None
    busy = MOST_BUSY
    if slo.ttft_p95_ms is not None:
        busy = 1.0 - P95_OF_MEAN * (PROMPT_TOKENS / prefill) / (slo.ttft_p95_ms / 1000)
    busy = min(MOST_BUSY, max(LEAST_BUSY, busy))
    rows, step_s = _rows(speed, slo, concurrency)
    return Bearing(prefill * busy, rows / step_s * busy, wait_s=may_wait_s(slo))


def may_wait_s(slo: Slo) -> float:
    """How long a prompt may wait for its turn."""
    return PANIC_S if slo.wait_s is None else slo.wait_s


def corrected(bearing: Bearing, slo: Slo, seen: Seen) -> Bearing:
    """What is believed after `seen`: the same, less where the latency was missed at a load that should have been borne,
    more where more was borne. A burst that was more than should be borne says nothing, however calm its minute was."""
    if seen.answers < ANSWERS or seen.replicas < 1 or not seen.rates.is_whole(STABLE_S):
        return bearing
    load = bearing.replicas(seen.rates) / seen.replicas
    worst = max(_part(seen.ttft_p95_ms, slo.ttft_p95_ms), _part(seen.itl_p95_ms, slo.itl_p95_ms))
    if worst > 1.0:
        is_too_much = max(load, seen.most / seen.replicas) >= 1.0
        return bearing if load < LOADED or is_too_much else _times(bearing, max(STEP_DOWN, 0.95 * load))
    if load > 1.0:
        return _times(bearing, min(STEP_UP, load))
    return _times(bearing, TRY) if worst <= COMFORT and load >= COMFORT else bearing


def _rows(speed: Mapping[str, float], slo: Slo, concurrency: int) -> tuple[float, float]:
    """How many rows decode at once within the latency, and a step's seconds: a step's time grows evenly with rows."""
    alone_s = 1.0 / speed["decode_1_tps"]
    eight_s = max(alone_s, 8.0 / (speed.get("decode_8_tps") or speed["decode_1_tps"]))
    row_s = max(1e-9, (eight_s - alone_s) / 7.0)
    rows = float(min(concurrency, 8))
    if slo.itl_p95_ms is not None:
        rows = min(float(concurrency), 1.0 + (slo.itl_p95_ms / 1000 - alone_s) / row_s)
    rows = max(1.0, rows)
    return rows, alone_s + (rows - 1.0) * row_s


def _times(bearing: Bearing, factor: float) -> Bearing:
    return replace(bearing, prefill_per_s=bearing.prefill_per_s * factor, decode_per_s=bearing.decode_per_s * factor)


def _part(seen_ms: float | None, allowed_ms: float | None) -> float:
    return 0.0 if seen_ms is None or not allowed_ms else seen_ms / allowed_ms
