"""What decides in a replay: Ebb's own pure files, a constant idle time, and Knative's autoscaler. Knows no events."""

import math
from collections import deque
from typing import Protocol

from control_plane.autoscaler.keepalive import History, Plan, Terms, idle_limit_s, plan, wake
from control_plane.autoscaler.policy import Decision, GatewayDemand, Limits, Observation, decide
from control_plane.simulator.scale.fleet import GB, Endpoint
from control_plane.simulator.scale.settings import FleetSettings


class Scaler(Protocol):
    """Decides for all endpoints of one replay; times in seconds of the trace."""

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """A request comes to an endpoint that had none."""
        ...

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """How many replicas now, and after how long to ask again though nothing happens."""
        ...


class Constant:
    """policy.py with one idle time for all."""

    def __init__(self, settings: FleetSettings, idle_s: float) -> None:
        self._limits = Limits(0, settings.max_replicas, idle_s, settings.concurrency)

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """Nothing is learned."""

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """As the autoscaler does."""
        return decide(_observed(endpoint, now), self._limits, now)


class Ebb:
    """policy.py with the idle time of keepalive.py, and its waking ahead."""

    def __init__(self, settings: FleetSettings, epoch: float, worth: float | None = None) -> None:
        self._settings = settings
        self._epoch = epoch
        self._terms = Terms(settings.start_s, int(settings.memory_gb * GB), settings.worth if worth is None else worth)
        self._histories: dict[int, History] = {}
        self._plans: dict[int, tuple[float, Plan]] = {}

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """Learn the idle time that ends."""
        if endpoint.last_work_at is not None:
            history = self._histories.setdefault(endpoint.number, History())
            history.learn(now - endpoint.last_work_at, self._epoch + now)

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """As the autoscaler does for `idle: auto`."""
        began = endpoint.last_work_at
        if endpoint.load or began is None:
            return decide(_observed(endpoint, now), self._limits(0.0), now)
        planned = self._plan(endpoint, began)
        if endpoint.desired == 0:
            woken = wake(planned, began, now)
            if woken.is_due and not endpoint.was_evicted:
                endpoint.last_wake_at, endpoint.promised_until = now, woken.held_until
                return Decision(1, f"A request is expected. {planned.reason}", woken.held_until - now)
            return Decision(0, planned.reason, woken.again_s if not endpoint.was_evicted else math.inf)
        quiet = max(began, endpoint.last_wake_at or began, endpoint.last_ready_at or began)
        return decide(_observed(endpoint, now), self._limits(idle_limit_s(planned, began, quiet, now)), now)

    def _plan(self, endpoint: Endpoint, began: float) -> Plan:
        known = self._plans.get(endpoint.number)
        if known is None or known[0] != began:
            history = self._histories.setdefault(endpoint.number, History())
            known = self._plans[endpoint.number] = (began, plan(history, self._terms, self._epoch + began))
        return known[1]

    def _limits(self, idle_s: float) -> Limits:
        return Limits(0, self._settings.max_replicas, idle_s, self._settings.concurrency)


class Knative:
    """Knative's pod autoscaler with its defaults: averages over a stable and a panic window, 70 % utilisation."""

    TICK_S = 2.0
    STABLE_S = 60.0
    PANIC_S = 6.0
    PANIC_FACTOR = 2.0
    UTILISATION = 0.7
    DOWN_RATE = 2.0

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._seen: dict[int, deque[tuple[float, float]]] = {}
        self._panic: dict[int, tuple[float, int]] = {}

    def resumed(self, endpoint: Endpoint, now: float) -> None:
        """The activator only wakes who sleeps: see `decide`."""

    def decide(self, endpoint: Endpoint, now: float) -> Decision:
        """At each tick by the windows; in between only a sleeper's first request changes anything."""
        seen = self._seen.setdefault(endpoint.number, deque())
        if endpoint.desired == 0:
            seen.clear()
            if not endpoint.load:
                return Decision(0, "Asleep.")
            seen.append((now, endpoint.load_s))
            return Decision(1, "The activator has a request.", self.TICK_S)
        since_s = now - seen[-1][0]
        if since_s < self.TICK_S - 1e-3:
            return Decision(endpoint.desired, "Between ticks.", self.TICK_S - since_s)
        endpoint.account(now)
        seen.append((now, endpoint.load_s))
        while len(seen) > 2 and seen[1][0] <= now - self.STABLE_S:
            seen.popleft()
        return Decision(self._at_tick(endpoint, seen, now), "Knative's windows.", self.TICK_S)

    def _at_tick(self, endpoint: Endpoint, seen: deque[tuple[float, float]], now: float) -> int:
        stable, panic = self._wanted(seen, self.STABLE_S, now), self._wanted(seen, self.PANIC_S, now)
        ready = max(1, endpoint.serving)
        wanted = max(stable, math.floor(ready / self.DOWN_RATE) if stable else 0)
        until, most = self._panic.get(endpoint.number, (-math.inf, 0))
        if panic / ready >= self.PANIC_FACTOR:
            until, most = now + self.STABLE_S, max(most, panic) if now < until else max(panic, endpoint.desired)
        if now < until:
            most = max(most, panic, wanted)
            wanted = most
            self._panic[endpoint.number] = (until, most)
        if wanted == 0 and (endpoint.load or now - seen[0][0] < self.STABLE_S):
            wanted = 1
        return min(wanted, self._settings.max_replicas)

    def _wanted(self, seen: deque[tuple[float, float]], window_s: float, now: float) -> int:
        first = next((one for one in seen if one[0] >= now - window_s - 1e-3), seen[0])
        last = seen[-1]
        if last[0] <= first[0]:
            return 1
        mean = (last[1] - first[1]) / (last[0] - first[0])
        return math.ceil(round(mean / (self._settings.concurrency * self.UTILISATION), 9))


def check_name(name: str) -> tuple[str, float | None]:
    """(kind, number) of a policy's name. Raises ValueError with a sentence where it is none."""
    kind, _, number = name.partition(":")
    try:
        value = float(number) if number else None
    except ValueError:
        value = math.nan
    is_one = {
        "knative": not number,
        "ebb": value is None or 0.0 < value < math.inf,
        "constant": value is not None and 0.0 <= value < math.inf,
    }
    if not is_one.get(kind, False):
        raise ValueError(
            f"'{name}' is no policy; there are ebb, ebb:WORTH (GB-seconds for a second of waiting), constant:SECONDS "
            "and knative."
        )
    return kind, value


def scaler_of(name: str, settings: FleetSettings, epoch: float) -> Scaler:
    """The scaler of a policy's name, without history. Raises ValueError where there is none of that name."""
    kind, value = check_name(name)
    if kind == "knative":
        return Knative(settings)
    return Constant(settings, value or 0.0) if kind == "constant" else Ebb(settings, epoch, value)


def _observed(endpoint: Endpoint, now: float) -> Observation:
    return Observation(
        desired=endpoint.desired,
        starting=len(endpoint.replicas) - endpoint.serving,
        demand=(GatewayDemand(endpoint.running, len(endpoint.waiting), now),),
        last_work_at=endpoint.last_work_at,
        last_wake_at=endpoint.last_wake_at,
        last_ready_at=endpoint.last_ready_at,
        promised_until=endpoint.promised_until,
        serving=endpoint.serving,
    )
