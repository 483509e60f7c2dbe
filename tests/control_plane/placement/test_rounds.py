"""Rounds of placing on a make-believe fleet with a clock of its own: twenty models, room for three."""

import dataclasses
import heapq
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import pytest

from control_plane.endpoints.memory import GIB, Estimate
from control_plane.placement.eviction import PATIENCE_S, TURN_S, Resident, Standing, arrivals_per_s
from control_plane.placement.fleet import Fleet
from control_plane.placement.planner import DeviceView, Need
from control_plane.placement.rounds import Evict, Place, Refuse, Round, Step, Wait, Want

START_S, STOP_S, SERVE_S, TICK_S = 0.6, 0.1, 0.1, 0.25
NODE = DeviceView("n", "box", "cpu", "cpu", 5 * GIB, cpus=2)  # 4 GiB for replicas
NEED = Need("auto", {"cpu": Estimate(GIB + GIB // 5, 0, 0), "cuda": Estimate(GIB, 0, 0)})  # three of them
SPOT = NODE.spot


@dataclass
class Model:
    name: str
    waiting: list[float] = field(default_factory=list[float])
    status: Standing | Literal["zero"] = "zero"
    since: float = 0.0
    asked_at: float = 0.0
    last_work_at: float | None = None
    serving_until: float = 0.0
    waits: list[float] = field(default_factory=list[float])
    starts: int = 0
    priority: str = "normal"


class World:
    """A node's replicas: starting takes START_S, stopping STOP_S, a request SERVE_S, one after another."""

    def __init__(self, count: int, *, demand_forever: bool = False) -> None:
        self.models = [Model(f"m{at:02}") for at in range(count)]
        self.now = 0.0
        self.demand_forever = demand_forever
        self.most_live = 0

    def step(self, arrivals: list[tuple[float, int]]) -> None:
        """To the next twentieth of a second."""
        self.now = round(self.now + 0.05, 6)
        while arrivals and arrivals[0][0] <= self.now:
            at, which = heapq.heappop(arrivals)
            self.models[which].waiting.append(at)
        for model in self.models:
            self._live(model)
        self._round()
        held = sum(model.status in ("coming", "ready", "leaving") for model in self.models)
        self.most_live = max(self.most_live, held)
        assert held <= 3, "never more than there is memory for"

    def _live(self, model: Model) -> None:
        age = self.now - model.since
        if model.status == "coming" and age >= START_S:
            model.status, model.since = "ready", self.now
        elif model.status == "leaving" and age >= STOP_S and self.now >= model.serving_until:
            model.status = "zero"
        is_free = model.status == "ready" and self.now >= model.serving_until
        if is_free and (model.waiting or self.demand_forever):
            if model.waiting:
                model.waits.append(self.now - model.waiting.pop(0))
            model.serving_until = self.now + SERVE_S
            model.last_work_at = model.serving_until
        if model.status == "zero" and model.waiting and model.asked_at == 0.0:
            model.asked_at = self.now

    def _round(self) -> None:
        residents = [self._resident(model) for model in self.models if model.status in ("coming", "ready", "leaving")]
        device = dataclasses.replace(NODE, promised_bytes=sum(each.holds_bytes for each in residents))
        wants = [
            Want(model.name, model.name, NEED, asked_at=model.asked_at, priority=model.priority)
            for model in self.models
            if model.asked_at > 0.0
        ]
        by_name = {model.name: model for model in self.models}
        for step in Round(Fleet((device,)), residents, self.now).decide(wants):
            model = by_name[step.want.endpoint]
            if isinstance(step, Place):
                model.status, model.since, model.asked_at = "coming", self.now, 0.0
                model.starts += 1
            elif isinstance(step, Evict):
                for victim in step.victims:
                    gone = by_name[victim.endpoint]
                    is_busy = gone.waiting or gone.serving_until > self.now
                    assert victim.how == "turn" or not is_busy, "who works stays"
                    gone.status, gone.since = "leaving", self.now
            else:
                assert isinstance(step, Wait), step

    def _resident(self, model: Model) -> Resident:
        assert model.status != "zero", "it holds nothing"
        idle_s = None if model.last_work_at is None else max(0.0, self.now - model.last_work_at)
        return Resident(
            *(model.name, model.name, model.name, SPOT),
            standing=model.status,
            holds_bytes=NEED.estimates["cpu"].total_bytes,
            has_work=bool(model.waiting) or model.serving_until > self.now,
            ready_for_s=self.now - model.since if model.status == "ready" else None,
            idle_s=idle_s,
            arrivals_per_s=arrivals_per_s(idle_s),
            restore_s=START_S,
        )


def test_a_herd_on_twenty_models_is_served_in_nearly_the_shortest_time() -> None:
    world = World(20)
    arrivals = [(0.01, which) for which in range(20) for _ in range(3)]
    heapq.heapify(arrivals)
    while sum(len(model.waits) for model in world.models) < 60:
        world.step(arrivals)
        assert world.now < 60, "somebody starves"
    rounds = 7  # twenty in threes
    shortest = rounds * (START_S + 3 * SERVE_S) + (rounds - 1) * STOP_S
    assert world.now <= 1.6 * shortest, f"{world.now:.1f} s, and {shortest:.1f} s is the least there can be"
    assert {model.starts for model in world.models} == {1}, "nobody was started in vain"
    assert world.most_live == 3, "what there is is used"


def test_requests_at_random_are_all_answered_soon_and_nothing_ping_pongs() -> None:
    random = Random(7)
    world = World(20)
    arrivals = [(random.uniform(0, 240), random.randrange(20)) for _ in range(200)]
    heapq.heapify(arrivals)
    while arrivals or any(model.waiting for model in world.models):
        world.step(arrivals)
        assert world.now < 300
    waits = sorted(wait for model in world.models for wait in model.waits)
    assert len(waits) == 200
    assert waits[int(0.95 * len(waits))] <= 2.5 * (START_S + STOP_S)
    assert sum(model.starts for model in world.models) <= 200, "no start without somebody who waits"


def test_where_all_have_work_for_ever_they_take_turns() -> None:
    world = World(5, demand_forever=True)
    arrivals = [(0.01, which) for which in range(5)]
    heapq.heapify(arrivals)
    served: Counter[str] = Counter()
    for _ in range(int(90 / 0.05)):
        before = {model.name: model.starts for model in world.models}
        for model in world.models:
            if model.status == "zero" and not model.waiting:
                heapq.heappush(arrivals, (world.now, int(model.name[1:])))
        world.step(arrivals)
        served.update(model.name for model in world.models if model.starts > before[model.name])
    assert set(served) == {model.name for model in world.models}, "nobody starves"
    assert max(served.values()) - min(served.values()) <= 2
    assert max(wait for model in world.models for wait in model.waits) <= 2 * (TURN_S + PATIENCE_S)


def want(name: str, size: int, **facts: Any) -> Want:
    return Want(name, name, Need("auto", {"cpu": Estimate(size, 0, 0), "cuda": Estimate(size, 0, 0)}), **facts)


def idle(name: str, size: int, **facts: Any) -> Resident:
    told: dict[str, Any] = {"has_work": False, "ready_for_s": 900.0, "idle_s": 60.0, "arrivals_per_s": 0.01, **facts}
    return Resident(name, name, name, SPOT, "ready", size, **told)


def round_of(residents: list[Resident], wants: list[Want], now: float = 100.0) -> list[Step]:
    held = sum(each.holds_bytes for each in residents)
    return list(Round(Fleet((dataclasses.replace(NODE, promised_bytes=held),)), residents, now).decide(wants))


def test_the_first_in_line_has_the_first_claim_and_smaller_ones_do_not_pass_it() -> None:
    busy = idle("busy", 3 * GIB, has_work=True)
    steps = round_of([busy], [want("large", 2 * GIB, asked_at=95.0), want("small", GIB // 2, asked_at=96.0)])
    assert [type(step) for step in steps] == [Wait, Wait]
    steps = round_of([busy], [want("small", GIB // 2, asked_at=95.0), want("large", 2 * GIB, asked_at=96.0)])
    assert [type(step) for step in steps] == [Place, Wait]


def test_a_priority_is_worth_some_seconds_and_not_more() -> None:
    busy = [idle("busy", 3 * GIB, has_work=True)]
    soon = [want("low", GIB, asked_at=90.0, priority="low"), want("high", GIB, asked_at=99.0, priority="high")]
    assert [step.want.endpoint for step in round_of(busy, soon)] == ["high", "low"]
    late = [want("low", GIB, asked_at=10.0, priority="low"), want("high", GIB, asked_at=99.0, priority="high")]
    assert [step.want.endpoint for step in round_of(busy, late)] == ["low", "high"]


def test_one_eviction_serves_one_and_what_leaves_is_counted_once() -> None:
    there = [idle(f"i{at}", GIB + GIB // 5) for at in range(3)]
    wants = [want(f"w{at}", GIB + GIB // 5, asked_at=90.0 + at) for at in range(4)]
    steps = round_of(there, wants)
    assert [type(step) for step in steps] == [Evict, Evict, Evict, Wait]
    gone = [victim.replica_id for step in steps if isinstance(step, Evict) for victim in step.victims]
    assert sorted(gone) == ["i0", "i1", "i2"]
    leaving = [dataclasses.replace(each, standing="leaving") for each in there]
    assert [type(step) for step in round_of(leaving, wants)] == [Wait] * 4, "room is coming: nobody else need go"


def test_what_can_never_be_is_refused_and_what_is_parked_is_woken() -> None:
    [never] = round_of([], [want("huge", 64 * GIB)])
    assert isinstance(never, Refuse) and never.why.permanent
    parked = dataclasses.replace(idle("p", GIB // 4), standing="parked", kv_bytes=GIB)
    [step] = round_of([parked], [want("w", GIB, parked=(parked,))])
    assert type(step).__name__ == "Unpark"
    busy = idle("busy", 3 * GIB, has_work=True)
    [step] = round_of([parked, busy], [want("w", GIB + GIB // 4, asked_at=95.0, parked=(parked,))])
    assert isinstance(step, Wait), "there is no room for its cache, and nobody to make any"


@pytest.mark.parametrize("desired", [1, 2])
def test_cores_are_shared_among_copies(desired: int) -> None:
    [*steps] = round_of([], [want("w", GIB, missing=desired, desired=desired)])
    assert [step.threads for step in steps if isinstance(step, Place)] == [0] * desired if desired == 1 else [1, 1]
