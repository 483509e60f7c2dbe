"""Endpoints and replicas as the replay has them: what waits, what runs, what memory is held where. No policy here."""

from collections import deque
from dataclasses import dataclass, field

from control_plane.endpoints.memory import Estimate
from control_plane.placement.planner import DeviceView, Need, NoRoom, plan
from control_plane.simulator.errors import SimulationError
from control_plane.simulator.scale.engine import Engine
from control_plane.simulator.scale.settings import FleetSettings
from control_plane.simulator.scale.workload import Arrival

GB = 1e9


@dataclass(slots=True, eq=False)
class Replica:
    """One replica on a device; it takes requests from `ready_at` on."""

    endpoint: "Endpoint"
    place: tuple[str, str]
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
    desired: int = 0
    replicas: list[Replica] = field(default_factory=list[Replica])
    """Without those that only end what they have begun."""
    waiting: deque[Arrival] = field(default_factory=deque[Arrival])
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

    def __init__(self, nodes: int, settings: FleetSettings) -> None:
        self._settings = settings
        self._bytes = int(settings.memory_gb * GB)
        names = [
            (f"node-{node:04}", f"cuda:{device}") for node in range(nodes) for device in range(settings.node_devices)
        ]
        self._promised = dict.fromkeys(names, 0)
        self._need = Need("auto", {"cuda": Estimate(self._bytes, 0, 0)})
        self.replicas: set[Replica] = set()
        self.replica_s = 0.0
        empty = plan(self._views(None), self._need)
        if isinstance(empty, NoRoom):
            raise SimulationError(
                f"With memory_gb {settings.memory_gb:g} and device_gb {settings.device_gb:g}: {empty.message}"
            )

    def start(self, endpoint: Endpoint, now: float) -> Replica | None:
        """A replica where the planner puts it, or None where it finds no room."""
        placed = plan(self._views(endpoint), self._need)
        if isinstance(placed, NoRoom):
            return None
        place = (placed.node, placed.device)
        self._promised[place] += self._bytes
        replica = Replica(endpoint, place, now, now + self._settings.start_s, Engine(self._settings))
        endpoint.replicas.append(replica)
        self.replicas.add(replica)
        return replica

    def stop(self, replica: Replica, now: float, end_s: float) -> None:
        """Give its memory back. What was held after `end_s` is not counted."""
        assert not replica.busy, "a replica was stopped with requests on it"
        replica.is_gone = True
        self.retire(replica)
        self.replicas.remove(replica)
        self._promised[replica.place] -= self._bytes
        self.replica_s += max(0.0, min(now, end_s) - min(replica.started_at, end_s))

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
        total = int(self._settings.device_gb * GB)
        return tuple(
            DeviceView(node, node, device, "cuda", total, promised, mine.count((node, device)))
            for (node, device), promised in self._promised.items()
        )
