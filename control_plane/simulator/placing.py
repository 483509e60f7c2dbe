"""What a round of placing costs, by the size of the fleet: the very files that decide, on fleets that are made up.

Endpoints, nodes and devices grow alike, as 1,000 to 200 to 1,600. Half of the endpoints have a replica, idle or busy;
a tenth are woken at once; those who find the fleet full have room made. Reading rows is not in
it: that is a fixed number of queries (placement/observe.py).
"""

import time
from dataclasses import dataclass
from random import Random
from statistics import median

from control_plane.endpoints.memory import GIB, Estimate
from control_plane.placement.eviction import Resident
from control_plane.placement.fleet import Fleet
from control_plane.placement.planner import DeviceView, Need
from control_plane.placement.rounds import Evict, Place, Round, Step, Want

DEVICES_PER_NODE = 8
ENDPOINTS_PER_NODE = 5
DEVICE_BYTES = 80 * GIB
NOW = 1000.0


@dataclass(frozen=True)
class Cost:
    """Of one size: `decision_ms` is one endpoint's wake, the fleet taken in included; `round_ms` that of a tenth of the
    endpoints at once, `per_wake_ms` each of them; medians of the rounds."""

    endpoints: int
    nodes: int
    devices: int
    fullness: str
    decision_ms: float
    round_ms: float
    per_wake_ms: float
    placed: int
    evicting: int


def measure(endpoints: int, *, is_full: bool, rounds: int = 5, seed: int = 0) -> Cost:
    """A fleet with room, or one in which whoever is placed must have room made for it."""
    nodes = max(1, endpoints // ENDPOINTS_PER_NODE)
    devices, residents = _fleet(nodes, endpoints, is_full, Random(seed))  # noqa: S311 - makes up a fleet, guards nothing
    wants = _wants(max(1, endpoints // 10), is_full)
    one = [_timed(devices, residents, wants[:1])[0] for _ in range(rounds)]
    many = [_timed(devices, residents, wants) for _ in range(rounds)]
    round_ms, steps = median(each for each, _ in many), many[0][1]
    return Cost(
        endpoints=endpoints,
        nodes=nodes,
        devices=len(devices),
        fullness="full" if is_full else "half",
        decision_ms=round(median(one), 3),
        round_ms=round(round_ms, 3),
        per_wake_ms=round(round_ms / len(wants), 4),
        placed=sum(isinstance(step, Place) for step in steps),
        evicting=sum(isinstance(step, Evict) for step in steps),
    )


def _timed(devices: list[DeviceView], residents: list[Resident], wants: list[Want]) -> tuple[float, list[Step]]:
    began = time.perf_counter()
    steps = Round(Fleet(devices), residents, NOW).decide(wants)
    return (time.perf_counter() - began) * 1000, steps


def _fleet(nodes: int, endpoints: int, is_full: bool, random: Random) -> tuple[list[DeviceView], list[Resident]]:
    devices: list[DeviceView] = []
    residents: list[Resident] = []
    for at in range(nodes * DEVICES_PER_NODE):
        node, index = divmod(at, DEVICES_PER_NODE)
        spot = (f"n{node}", f"cuda:{index}")
        holds = random.randrange(30, 36) * GIB
        there = 2 if is_full else at % 2
        for copy in range(there):
            name = f"e{(at + copy * 7) % endpoints}"
            residents.append(
                Resident(
                    *(f"r{at}-{copy}", name, name, spot, "ready", holds),
                    has_work=random.random() < 0.3,
                    ready_for_s=600.0,
                    idle_s=random.uniform(1, 600),
                    arrivals_per_s=random.random() / 100,
                )
            )
        facts = (spot[0], f"node-{node:04}", spot[1], "cuda", DEVICE_BYTES)
        devices.append(DeviceView(*facts, promised_bytes=holds * there, busy=there % 2, cpus=64))
    return devices, residents


def _wants(count: int, is_full: bool) -> list[Want]:
    estimate = Estimate(16 * GIB, 12 * GIB if is_full else 8 * GIB, GIB)
    need = Need("auto", {"cpu": estimate, "cuda": estimate})
    return [
        Want(f"w{at}", f"w{at}", need, asked_at=NOW - at / 1000, cached=frozenset({f"n{at % 97}"}))
        for at in range(count)
    ]
