"""Endpoints and replicas as the replay has them: what waits, what runs, what memory is held where. No policy here."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from control_plane.endpoints.memory import Estimate
from control_plane.placement.planner import DeviceView, Need, NoRoom, plan
from control_plane.simulator.errors import SimulationError
from control_plane.simulator.scale.engine import Engine
from control_plane.simulator.scale.settings import FleetSettings
from control_plane.simulator.scale.workload import Arrival
from data_plane.gateway.fairness import Account, Claim
from data_plane.gateway.line import Bounds, Line, Place

GB = 1e9
_NOBODY_IS_REFUSED = Bounds(1 << 62, 1 << 62)


@dataclass(eq=False, slots=True)
class Waiting(Place):
    """A request in its endpoint's line."""

    arrival: Arrival


@dataclass(slots=True, eq=False)
class Replica:
    """One replica on a device; it takes requests from `ready_at` on."""

    endpoint: "Endpoint"
    place: tuple[str, str]
    bytes: int
    started_at: float
    ready_at: float
    engine: Engine
    due_at: float | None = None
    """When its engine is looked at next."""
    busy: int = 0
    is_ready: bool = False
    is_gone: bool = False


@dataclass(slots=True, eq=False)
class Endpoint:
    """One endpoint at one moment; times in seconds of the trace."""

    number: int
    settings: FleetSettings
    """Of its replicas."""
    need: Need
    min_replicas: int = 0
    desired: int = 0
    replicas: list[Replica] = field(default_factory=list[Replica])
    """Without those that only end what they have begun."""
    wait_s: float = inf
    """Who is not begun within this lets others go first."""
    party: Account = field(default_factory=Account)
    """All its requests are one key's."""
    waiting: Line[Waiting] = field(default_factory=lambda: Line[Waiting](_NOBODY_IS_REFUSED))
    running: int = 0
    last_work_at: float | None = None
    last_wake_at: float | None = None
    last_ready_at: float | None = None
    promised_until: float | None = None
    was_evicted: bool = False
    """Since its last work: it is not woken ahead only to be evicted again."""
    load_s: float = 0.0
    """The integral of `load` up to `load_at`, for policies that look at averages."""
    load_at: float = 0.0
    prefill_tokens: int = 0
    """Of all prompts that had their turn."""
    decoded: int = 0
    """Tokens that replicas wrote that are gone."""
    answers: deque[tuple[float, float, float]] = field(default_factory=deque[tuple[float, float, float]])
    """(when it ended, seconds to its first token, seconds between its tokens) of each answer with tokens; whoever reads
    them lets go of the old ones."""
    timer: int = 0
    """Of its timers only the last one set counts."""

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return self.running + len(self.waiting)

    @property
    def serving(self) -> int:
        """Replicas that take requests."""
        return sum(replica.is_ready for replica in self.replicas)

    def line_up(self, arrival: Arrival) -> None:
        """It waits, as in the gateway."""
        latest = arrival.at_s + self.wait_s - arrival.prompt_tokens / self.settings.prefill_tokens_per_s
        self.waiting.push(Waiting(Claim(self.party), arrival.at_s, 0, arrival, latest=latest))

    def account(self, now: float) -> None:
        """Bring the integral of the load up to `now`; before each change of it."""
        self.load_s += self.load * (now - self.load_at)
        self.load_at = now

    def decode_tokens(self, now: float) -> int:
        """All tokens that were written until `now`, by those who still take requests."""
        for replica in self.replicas:
            replica.engine.count(now)
        return self.decoded + sum(replica.engine.decoded for replica in self.replicas)


class Fleet:
    """Devices, what is promised on them, and what was held until now."""

    def __init__(self, devices: Sequence[DeviceView]) -> None:
        self._devices = tuple(devices)
        self._promised = {device.spot: 0 for device in devices}
        self.replicas: set[Replica] = set()
        self.replica_s = self.memory_gb_s = 0.0

    def check(self, needs: Mapping[str, Need]) -> None:
        """Raises SimulationError where a replica finds no room though there is no other; `needs` by name."""
        empty = self._views(None)
        for name, need in needs.items():
            answer = plan(empty, need)
            if isinstance(answer, NoRoom):
                raise SimulationError(f"{name}: {answer.message}")

    def start(self, endpoint: Endpoint, now: float) -> Replica | None:
        """A replica where the planner puts it, or None where it finds no room."""
        placed = plan(self._views(endpoint), endpoint.need)
        if isinstance(placed, NoRoom):
            return None
        size = placed.estimate.total_bytes
        self._promised[placed.spot] += size
        settings = endpoint.settings
        replica = Replica(endpoint, placed.spot, size, now, now + settings.start_s, Engine(settings))
        endpoint.replicas.append(replica)
        self.replicas.add(replica)
        return replica

    def stop(self, replica: Replica, now: float, end_s: float) -> None:
        """Give its memory back. What was held after `end_s` is not counted."""
        assert not replica.busy, "a replica was stopped with requests on it"
        replica.is_gone = True
        self.retire(replica)
        self.replicas.remove(replica)
        self._promised[replica.place] -= replica.bytes
        held_s = max(0.0, min(now, end_s) - min(replica.started_at, end_s))
        self.replica_s += held_s
        self.memory_gb_s += held_s * replica.bytes / GB

    def retire(self, replica: Replica) -> None:
        """It takes no more requests."""
        if replica in replica.endpoint.replicas:
            replica.endpoint.replicas.remove(replica)
            replica.endpoint.decoded += replica.engine.decoded

    def longest_idle(self, but: Endpoint) -> Replica | None:
        """The ready replica without requests whose endpoint, not `but`, has been without work the longest."""
        idle = [one for one in self.replicas if one.is_ready and not one.endpoint.load and one.endpoint is not but]
        return min(idle, key=lambda one: (one.endpoint.last_work_at or 0.0, one.endpoint.number), default=None)

    def _views(self, endpoint: Endpoint | None) -> tuple[DeviceView, ...]:
        mine = [replica.place for replica in endpoint.replicas] if endpoint else []
        return tuple(
            DeviceView(
                device.node_id,
                device.node,
                device.device,
                device.kind,
                device.memory_bytes,
                self._promised[device.spot],
                mine.count(device.spot),
            )
            for device in self._devices
        )


def alike(nodes: int, settings: FleetSettings) -> tuple[DeviceView, ...]:
    """The devices of so many nodes as the settings say."""
    size = int(settings.device_gb * GB)
    return tuple(
        DeviceView(f"node-{node:04}", f"node-{node:04}", f"cuda:{device}", "cuda", size)
        for node in range(nodes)
        for device in range(settings.node_devices)
    )


def need_of(memory_gb: float) -> Need:
    """That of a replica of which only its size is known."""
    size = Estimate(int(memory_gb * GB), 0, 0)
    return Need("auto", {"cpu": size, "cuda": size})
