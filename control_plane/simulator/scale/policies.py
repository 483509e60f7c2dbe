"""What decides in a replay: Ebb's own pure files, a constant idle time, and Knative's autoscaler. Knows no events."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from control_plane.autoscaler.bearing import Bearing, measured
from control_plane.autoscaler.habits import FRESH_S, Habits, together
from control_plane.autoscaler.keepalive import History, Plan, Terms, idle_limit_s, plan, wake
from control_plane.autoscaler.policy import Decision, Limits, decide
from control_plane.simulator.scale.fleet import GB, Endpoint
from control_plane.simulator.scale.sampled import Sampled, slo_of
from control_plane.simulator.scale.settings import FleetSettings
from control_plane.simulator.scale.workload import Deployed, Trace

AS_DEPLOYED = "as-deployed"
"""The policy that each endpoint has now."""


class Scaler(Protocol):
    """Decides for all endpoints of one replay; times in seconds of the trace."""

    def wait_s(self, number: int) -> float:
        """Who was not begun within this lets others of the endpoint go first; infinite: first come, first served."""
        ...

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """A request comes to an endpoint that had none."""
        ...

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """How many replicas now, and after how long to ask again though nothing happens."""
        ...


class Constant:
    """policy.py with a constant idle time; `limits` are the endpoints', by their numbers."""

    def __init__(self, limits: Sequence[Limits]) -> None:
        self._sampled = Sampled(limits)

    def wait_s(self, number: int) -> float:
        """As in the gateway's line."""
        return self._sampled.wait_s(number)

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """Nothing is learned."""

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """As the autoscaler does."""
        return self._sampled.again(endpoint, decide(*self._sampled.look(endpoint, now), now))


class Ebb:
    """policy.py with the idle time of keepalive.py, and its waking ahead."""

    def __init__(self, limits: Sequence[Limits], epoch: float, worth: float | None = None) -> None:
        self._sampled = Sampled(limits)
        self._epoch = epoch
        self._worth = worth
        self._histories: dict[int, History] = {}
        self._plans: dict[int, tuple[float, Plan]] = {}
        self._habits, self._counted_at = Habits(), -math.inf

    def wait_s(self, number: int) -> float:
        """As in the gateway's line."""
        return self._sampled.wait_s(number)

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """Learn the idle time that ends."""
        if endpoint.last_work_at is not None:
            history = self._histories.setdefault(endpoint.number, History())
            history.learn(now - endpoint.last_work_at, self._epoch + now)

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """As the autoscaler does for `idle: auto`."""
        began = endpoint.last_work_at
        if endpoint.load or began is None:
            return self._decide(endpoint, 0.0, now)
        planned = self._plan(endpoint, began)
        if endpoint.desired == 0:
            woken = wake(planned, began, now)
            if woken.is_due and not endpoint.was_evicted:
                endpoint.last_wake_at, endpoint.promised_until = now, woken.held_until
                return Decision(1, f"A request is expected. {planned.reason}", woken.held_until - now)
            return Decision(0, planned.reason, woken.again_s if not endpoint.was_evicted else math.inf)
        quiet = max(began, endpoint.last_wake_at or began, endpoint.last_ready_at or began)
        return self._decide(endpoint, idle_limit_s(planned, began, quiet, now), now)

    def _decide(self, endpoint: Endpoint, idle_s: float, now: float) -> Decision:
        observed, limits = self._sampled.look(endpoint, now)
        return self._sampled.again(endpoint, decide(observed, replace(limits, idle_s=idle_s), now))

    def _plan(self, endpoint: Endpoint, began: float) -> Plan:
        known = self._plans.get(endpoint.number)
        if known is None or known[0] != began:
            history, settings = self._histories.setdefault(endpoint.number, History()), endpoint.settings
            worth = settings.worth if self._worth is None else self._worth
            terms = Terms(settings.start_s, int(settings.memory_gb * GB), worth)
            planned = plan(history, terms, self._epoch + began, self._of_all(began))
            known = self._plans[endpoint.number] = (began, planned)
        return known[1]

    def _of_all(self, now: float) -> Habits:
        if now - self._counted_at >= FRESH_S:
            starts = (history.starts for history in self._histories.values())
            self._habits, self._counted_at = together(starts, self._epoch + now), now
        return self._habits


class Knative:
    """Knative's pod autoscaler with its defaults, and a hard container-concurrency.

    By github.com/knative/serving: pkg/autoscaler/scaling/autoscaler.go (Scale: windows, rates, panic),
    pkg/autoscaler/scaling/multiscaler.go (a tick every 2 s), pkg/autoscaler/config/config.go (the defaults),
    pkg/autoscaler/aggregation/bucketing.go (a window begun lately is averaged over what there is of it) and
    pkg/reconciler/autoscaling/kpa/scaler.go (zero). A maximum of 1000-fold growth at once never binds here. The last
    pod goes without a further grace period: with the default target-burst-capacity of 211 the activator has been in
    the path of so small a service all along.
    """

    TICK_S = 2.0
    STABLE_S = 60.0
    PANIC_S = 6.0
    PANIC_THRESHOLD = 2.0
    TARGET_UTILISATION = 0.7
    MAX_SCALE_DOWN_RATE = 2.0

    def __init__(self) -> None:
        self._seen: dict[int, deque[tuple[float, float]]] = {}
        self._panic: dict[int, tuple[float, int]] = {}

    def wait_s(self, number: int) -> float:
        """Its queues are first come, first served."""
        return math.inf

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """The activator only wakes who sleeps: see `decide`."""

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """At each tick by the windows; in between only a sleeper's first request changes anything."""
        seen = self._seen.setdefault(endpoint.number, deque())
        if endpoint.desired == 0:
            seen.clear()
            self._panic.pop(endpoint.number, None)
            least = endpoint.min_replicas
            if not endpoint.load and not least:
                return Decision(0, "Asleep.")
            seen.append((now, endpoint.load_s))
            return Decision(max(1, least), "The activator has a request, or min is not 0.", self.TICK_S)
        since_s = now - seen[-1][0]
        if since_s < self.TICK_S - 1e-3:
            return Decision(endpoint.desired, "Between ticks.", self.TICK_S - since_s)
        endpoint.account(now)
        seen.append((now, endpoint.load_s))
        while len(seen) > 2 and seen[1][0] <= now - self.STABLE_S:
            seen.popleft()
        return Decision(self._at_tick(endpoint, seen, now), "Knative's windows.", self.TICK_S)

    def _at_tick(self, endpoint: Endpoint, seen: deque[tuple[float, float]], now: float) -> int:
        ready = max(1, endpoint.serving)
        most_down = math.floor(ready / self.MAX_SCALE_DOWN_RATE)
        by_panic = self._wanted(endpoint, seen, self.PANIC_S, now)
        stable, panic = max(self._wanted(endpoint, seen, self.STABLE_S, now), most_down), max(by_panic, most_down)
        since, most = self._panic.get(endpoint.number, (-math.inf, 0))
        if by_panic / ready >= self.PANIC_THRESHOLD:
            since = now
        wanted = stable
        if now <= since + self.STABLE_S:  # nothing is taken away in a panic
            wanted = most = max(most, stable, panic)
            self._panic[endpoint.number] = since, most
        else:
            self._panic.pop(endpoint.number, None)
        if wanted == 0 and (endpoint.load or now - seen[0][0] < self.STABLE_S):
            wanted = 1
        return min(max(wanted, endpoint.min_replicas), endpoint.settings.max_replicas)

    def _wanted(self, endpoint: Endpoint, seen: deque[tuple[float, float]], window_s: float, now: float) -> int:
        first = next((one for one in seen if one[0] >= now - window_s - 1e-3), seen[0])
        last = seen[-1]
        if last[0] <= first[0]:
            return 1
        mean = (last[1] - first[1]) / (last[0] - first[0])
        return math.ceil(round(mean / (endpoint.settings.concurrency * self.TARGET_UTILISATION), 9))


class AsDeployed:
    """Each endpoint as it stands: by its own idle times, or with the constant idle time it was given."""

    def __init__(self, deployed: Sequence[Deployed], ebb: Ebb, constant: Constant) -> None:
        self._of: list[Scaler] = [ebb if one.idle_s is None else constant for one in deployed]

    def wait_s(self, number: int) -> float:
        """As its policy does."""
        return self._of[number].wait_s(number)

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """As its policy does."""
        self._of[endpoint.number].resumed(endpoint, now)

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """As its policy does."""
        return self._of[endpoint.number].decide(endpoint, now)


def check_name(name: str) -> tuple[str, float | None]:
    """(kind, number) of a policy's name. Raises ValueError with a sentence where it is none."""
    kind, _, number = name.partition(":")
    try:
        value = float(number) if number else None
    except ValueError:
        value = math.nan
    is_one = {
        "knative": not number,
        AS_DEPLOYED: not number,
        "ebb": value is None or 0.0 < value < math.inf,
        "constant": value is not None and 0.0 <= value < math.inf,
    }
    if not is_one.get(kind, False):
        raise ValueError(
            f"'{name}' is no policy; there are ebb, ebb:WORTH (GB-seconds for a second of waiting), constant:SECONDS, "
            f"knative, and with --from-usage {AS_DEPLOYED}."
        )
    return kind, value


def scaler_of(name: str, settings: FleetSettings, trace: Trace) -> Scaler:
    """The scaler of a policy's name, without history. Raises ValueError where there is none of that name."""
    kind, value = check_name(name)
    if kind == "knative":
        return Knative()
    if trace.deployed:
        limits = [_limits(one, value) for one in trace.deployed]
    else:
        bears = _bears(settings) if trace.has_tokens else None
        limits = [Limits(0, settings.max_replicas, value or 0.0, settings.concurrency, bears)] * len(trace.endpoints)
    if kind == "constant":
        return Constant(limits)
    ebb = Ebb(limits, trace.epoch, value)
    if kind != AS_DEPLOYED:
        return ebb
    if not trace.deployed:
        raise ValueError(f"{AS_DEPLOYED} is known only of the platform's own usage: say --from-usage.")
    return AsDeployed(trace.deployed, ebb, Constant(limits))


def _limits(one: Deployed, idle_s: float | None) -> Limits:
    bears = _bears(one.settings) if one.has_slo else None
    idle_s = one.idle_s if idle_s is None else idle_s
    return Limits(one.min_replicas, one.settings.max_replicas, idle_s or 0.0, one.target, bears)


def _bears(settings: FleetSettings) -> Bearing | None:
    """What a replica is measured to bear within the objective, as the platform takes it from an artifact's speed."""
    speed = {
        "prefill_tps": settings.prefill_tokens_per_s,
        "decode_1_tps": settings.decode_per_s(1),
        "decode_8_tps": settings.decode_per_s(8),
    }
    return measured(speed, slo_of(settings), settings.concurrency)
