"""The replay: arrivals, ends, starts and timers in order of time, against one policy. Knows no files and no figures."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from control_plane.placement.planner import DeviceView
from control_plane.simulator.scale.fleet import Endpoint, Fleet, Replica, alike, need_of
from control_plane.simulator.scale.policies import Scaler
from control_plane.simulator.scale.settings import FleetSettings
from control_plane.simulator.scale.workload import Arrival, Trace

SOONEST_S = 1e-3
"""Timers are not set closer than this: what is rounded must not come due at the moment it was set."""
Event = Callable[[float], object]


@dataclass(slots=True)
class Outcome:
    """What happened. `waits` is seconds from arrival to turn, of each request that had its turn."""

    waits: list[float] = field(default_factory=list[float])
    met: int = 0
    """Requests within the objective."""
    cold: int = 0
    """Requests that found no replica that took requests."""
    replica_s: float = 0.0
    memory_gb_s: float = 0.0
    evictions: int = 0
    starts: int = 0


class Replay:
    """One policy on one trace. `run` may be called once. `devices`: those of the fleet; else its nodes are alike."""

    def __init__(
        self,
        trace: Trace,
        nodes: int,
        settings: FleetSettings,
        scaler: Scaler,
        devices: tuple[DeviceView, ...] | None = None,
    ) -> None:
        self._trace, self._scaler = trace, scaler
        self._fleet = Fleet(alike(nodes, settings) if devices is None else devices)
        self._endpoints = _endpoints(trace, settings)
        for endpoint in self._endpoints:
            endpoint.wait_s = scaler.wait_s(endpoint.number)
        by_name = zip(trace.endpoints, self._endpoints, strict=True)
        self._fleet.check(
            {f"Endpoint '{name}'": one.need for name, one in by_name}
            if trace.deployed
            else {
                f"With memory_gb {settings.memory_gb:g} and device_gb {settings.device_gb:g}": need_of(
                    settings.memory_gb
                )
            }
        )
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = count()
        self._starved: dict[Endpoint, None] = {}
        self.outcome = Outcome()

    def run(self, on_progress: Callable[[int], None] = lambda done: None) -> Outcome:
        """Until every request has ended; memory counts until the last arrival."""
        for endpoint in self._endpoints:
            if endpoint.min_replicas:
                self._settle(endpoint, 0.0)
        for done, arrival in enumerate(self._trace.arrivals):
            self._until(arrival.at_s)
            self._arrive(arrival)
            if done % 1024 == 0:
                on_progress(done)
        while self._events and any(endpoint.load for endpoint in self._endpoints):
            at, _, event = heapq.heappop(self._events)
            event(at)
        end_s = self._trace.span_s
        for replica in list(self._fleet.replicas):
            replica.busy = 0
            self._fleet.stop(replica, end_s, end_s)
        self.outcome.replica_s, self.outcome.memory_gb_s = self._fleet.replica_s, self._fleet.memory_gb_s
        return self.outcome

    def _until(self, now: float) -> None:
        while self._events and self._events[0][0] <= now:
            at, _, event = heapq.heappop(self._events)
            event(at)

    def _at(self, at: float, event: Event) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), event))

    def _arrive(self, arrival: Arrival) -> None:
        endpoint, now = self._endpoints[arrival.endpoint], arrival.at_s
        if not endpoint.load:
            self._scaler.resumed(endpoint, now)
            endpoint.was_evicted, endpoint.promised_until = False, None
        self.outcome.cold += not endpoint.serving
        endpoint.account(now)
        endpoint.line_up(arrival)
        self._serve(endpoint, now)
        self._settle(endpoint, now)

    def _serve(self, endpoint: Endpoint, now: float) -> None:
        """Give those who wait their turn, in the gateway's order, where the router sees the least work (choose.py)."""
        slots, token_s = endpoint.settings.concurrency, 1.0 / endpoint.settings.prefill_tokens_per_s
        while endpoint.waiting:
            free = [one for one in endpoint.replicas if one.is_ready and one.busy < slots]
            if not free:
                return
            endpoint.account(now)
            arrival = endpoint.waiting.pop(now + token_s * min(one.engine.owed for one in free)).arrival
            replica = _least_work(free, arrival, slots)
            replica.busy += 1
            endpoint.running += 1
            self.outcome.waits.append(now - arrival.at_s)
            if arrival.has_tokens:
                endpoint.prefill_tokens += arrival.prompt_tokens
                self._step(replica, now, arrival)
            else:
                self.outcome.met += now - arrival.at_s <= endpoint.settings.slo_wait_s
                self._at(now + arrival.busy_s, lambda at, replica=replica: self._end(replica, at))

    def _step(self, replica: Replica, now: float, arrival: Arrival | None = None) -> None:
        """Bring a replica's engine up to now, with a request more where there is one."""
        engine = replica.engine
        ended = engine.advance(now)
        if arrival is not None:
            engine.add(arrival, now)
        if engine.next_at < inf and engine.next_at != replica.due_at:
            replica.due_at = due = engine.next_at
            self._at(due, lambda at: due == replica.due_at and self._step(replica, at))
        for job in ended:
            slo = replica.endpoint.settings
            in_time = job.ttft_s <= slo.slo_ttft_s and job.itl_s <= slo.slo_itl_s
            self.outcome.met += in_time
            replica.endpoint.answers.append((now, job.ttft_s, job.itl_s))
            self._end(replica, now)

    def _end(self, replica: Replica, now: float) -> None:
        endpoint = replica.endpoint
        endpoint.account(now)
        replica.busy -= 1
        endpoint.running -= 1
        endpoint.last_work_at = now
        if replica not in endpoint.replicas and not replica.busy:
            self._stop(replica, now)
        self._serve(endpoint, now)
        self._settle(endpoint, now)

    def _ready(self, replica: Replica, now: float) -> None:
        if replica.is_gone:
            return
        endpoint = replica.endpoint
        replica.is_ready = True
        endpoint.last_ready_at = now
        self._serve(endpoint, now)
        self._settle(endpoint, now)

    def _settle(self, endpoint: Endpoint, now: float) -> None:
        """Ask the policy, and make it so as far as there is room."""
        decision = self._scaler.decide(endpoint, now)
        if decision.desired > endpoint.desired and endpoint.load:
            endpoint.last_wake_at = now
        if decision.desired == 0 < endpoint.desired:  # when it is to be woken ahead is another question
            endpoint.desired = 0
            decision = self._scaler.decide(endpoint, now)
        endpoint.desired = decision.desired
        if decision.again_s != inf:
            endpoint.timer += 1
            due = endpoint.timer
            self._at(now + max(SOONEST_S, decision.again_s), lambda at: self._timer(endpoint, due, at))
        self._stop_surplus(endpoint, now)
        self._start_missing(endpoint, now)

    def _timer(self, endpoint: Endpoint, due: int, now: float) -> None:
        if due == endpoint.timer:
            self._settle(endpoint, now)

    def _stop_surplus(self, endpoint: Endpoint, now: float) -> None:
        surplus = len(endpoint.replicas) - endpoint.desired
        if surplus <= 0:
            return
        for replica in sorted(reversed(endpoint.replicas), key=lambda one: (one.is_ready, one.busy))[:surplus]:
            if replica.busy:
                self._fleet.retire(replica)
            else:
                self._stop(replica, now)

    def _stop(self, replica: Replica, now: float) -> None:
        self._fleet.stop(replica, now, self._trace.span_s)
        if self._starved:
            self._at(now, self._feed)

    def _feed(self, now: float) -> None:
        """Memory came free: those without go on, first come first served."""
        for endpoint in list(self._starved):
            self._start_missing(endpoint, now)
            if endpoint in self._starved:
                return

    def _start_missing(self, endpoint: Endpoint, now: float) -> None:
        self._starved.pop(endpoint, None)
        while len(endpoint.replicas) < endpoint.desired:
            replica = self._fleet.start(endpoint, now)
            if replica is None and endpoint.load and not endpoint.replicas:
                replica = self._evict_for(endpoint, now)
            if replica is None:
                self._starved[endpoint] = None
                return
            self.outcome.starts += 1
            self._at(replica.ready_at, lambda at, replica=replica: self._ready(replica, at))

    def _evict_for(self, endpoint: Endpoint, now: float) -> Replica | None:
        victim = self._fleet.longest_idle(endpoint)
        if victim is None:
            return None
        victim.endpoint.desired = min(victim.endpoint.desired, len(victim.endpoint.replicas) - 1)
        victim.endpoint.was_evicted = True
        self._fleet.stop(victim, now, self._trace.span_s)
        self.outcome.evictions += 1
        return self._fleet.start(endpoint, now)


def _least_work(free: Sequence[Replica], arrival: Arrival, slots: int) -> Replica:
    crowded = [(one.engine.owed + arrival.prompt_tokens) * (1.0 + one.busy / slots) for one in free]
    return free[min(range(len(free)), key=lambda at: (crowded[at], free[at].busy))]


def _endpoints(trace: Trace, settings: FleetSettings) -> list[Endpoint]:
    if not trace.deployed:
        need = need_of(settings.memory_gb)
        return [Endpoint(number, settings, need) for number in range(len(trace.endpoints))]
    return [Endpoint(number, one.settings, one.need, one.min_replicas) for number, one in enumerate(trace.deployed)]
