"""What is known of a replay's endpoints, as the platform knows it: counters every two seconds while a window may
matter, the last answers' latency, and what a replica is believed to bear. Decides nothing."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.lessons import lesson
from control_plane.autoscaler.policy import Decision, GatewayDemand, Limits, Observation
from control_plane.autoscaler.reports import Told, demand_of
from control_plane.endpoints.minutes import SAMPLE_S, with_sample
from control_plane.endpoints.slo import Slo
from control_plane.simulator.scale.fleet import Endpoint
from control_plane.simulator.scale.settings import FleetSettings
from data_plane.wire.routes import Latency

LATENCY_S = 60.0


class Sampled:
    """Of all endpoints of one replay; `limits` are theirs, by their numbers."""

    def __init__(self, limits: Sequence[Limits]) -> None:
        self._limits = limits
        self._kept: dict[int, list[Sequence[float]]] = {}
        self._last: dict[int, GatewayDemand] = {}
        self._bears: dict[int, Bearing] = {}
        self._changed_at: dict[int, float] = {}

    def wait_s(self, number: int) -> float:
        """How long a request may wait for its latency to be held; infinite where there is none to hold."""
        bears = self._limits[number].bears
        return math.inf if bears is None else bears.wait_s

    def look(self, endpoint: Endpoint, now: float) -> tuple[Observation, Limits]:
        """What the policy is asked; windows change with each sample, and so does what is believed."""
        given = self._limits[endpoint.number]
        limits = replace(given, bears=self._bears.get(endpoint.number, given.bears))
        if not self._is_asked(endpoint):
            self._kept.pop(endpoint.number, None)
            return _observed(endpoint, GatewayDemand(endpoint.running, len(endpoint.waiting), now), 0.0), limits
        kept = self._kept.setdefault(endpoint.number, [])
        latency = _latency(endpoint.answers, now) if self._is_always(endpoint) else None
        answers_per_s = 0.0 if latency is None else latency.answers / LATENCY_S
        is_new = not kept or now - kept[-1][0] >= SAMPLE_S - 1e-3
        if is_new:
            endpoint.account(now)
            sample = (now, endpoint.load_s, endpoint.prefill_tokens, endpoint.decode_tokens(now))
            kept = self._kept[endpoint.number] = with_sample(kept, sample)
            told = Told(endpoint.running, len(endpoint.waiting), now, samples=kept)
            (self._last[endpoint.number],) = demand_of([told], endpoint.desired, limits, now)
        last = self._last[endpoint.number]
        demand = replace(last, running=endpoint.running, waiting=len(endpoint.waiting), reported_at=now)
        observed = _observed(endpoint, demand, answers_per_s)
        if is_new and limits.bears is not None:
            changed_at = self._changed_at.get(endpoint.number, -math.inf)
            better = lesson(limits.bears, slo_of(endpoint.settings), changed_at, observed, latency, now)
            if better is not None:
                self._bears[endpoint.number], self._changed_at[endpoint.number] = better, now
        return observed, limits

    def again(self, endpoint: Endpoint, decision: Decision) -> Decision:
        """The decision, to be asked for again when the next sample is due."""
        if not self._is_asked(endpoint) and decision.desired <= 1:
            return decision
        return replace(decision, again_s=min(decision.again_s, SAMPLE_S))

    def _is_always(self, endpoint: Endpoint) -> bool:
        return self._limits[endpoint.number].bears is not None

    def _is_asked(self, endpoint: Endpoint) -> bool:
        return endpoint.desired > 1 or (self._is_always(endpoint) and (endpoint.desired > 0 or endpoint.load > 0))


def slo_of(settings: FleetSettings) -> Slo:
    """The latency that is to be held."""
    return Slo(settings.slo_ttft_s * 1000, settings.slo_itl_s * 1000)


def _latency(answers: deque[tuple[float, float, float]], now: float) -> Latency | None:
    """As a gateway tells it; what is too old is let go."""
    while answers and answers[0][0] < now - LATENCY_S:
        answers.popleft()
    if not answers:
        return None
    return Latency(len(answers), LATENCY_S, _p95_ms([one[1] for one in answers]), _p95_ms([one[2] for one in answers]))


def _p95_ms(seconds: list[float]) -> float:
    return 1000 * sorted(seconds)[max(0, math.ceil(0.95 * len(seconds)) - 1)]


def _observed(endpoint: Endpoint, demand: GatewayDemand, answers_per_s: float) -> Observation:
    return Observation(
        desired=endpoint.desired,
        starting=len(endpoint.replicas) - endpoint.serving,
        demand=(demand,),
        last_work_at=endpoint.last_work_at,
        last_wake_at=endpoint.last_wake_at,
        last_ready_at=endpoint.last_ready_at,
        promised_until=endpoint.promised_until,
        serving=endpoint.serving,
        raised_at=endpoint.last_wake_at,
        answers_per_s=answers_per_s,
    )
