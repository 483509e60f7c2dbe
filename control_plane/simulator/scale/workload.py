"""What is replayed: requests to many endpoints, by time; and how the endpoints stand, where that is known.

Knows no file format and no policy.
"""

from dataclasses import dataclass

from control_plane.placement.planner import Need
from control_plane.simulator.scale.settings import FleetSettings


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `busy_s` is how long it takes a replica from its beginning to its end, once it is its turn; where
    the tokens are known, that follows from what else the replica does (engine.py), and `busy_s` is not looked at."""

    at_s: float
    endpoint: int
    busy_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def has_tokens(self) -> bool:
        """Whether its tokens are known."""
        return self.output_tokens > 0


@dataclass(frozen=True, slots=True)
class Deployed:
    """How an endpoint stands. `settings` are those of its replicas; `need` is what one asks of a device; `target` the
    requests that one should have at once. `idle_s` None: it sleeps by its own idle times."""

    settings: FleetSettings
    need: Need
    min_replicas: int
    target: int
    idle_s: float | None
    has_slo: bool
    """Whether it is to hold a latency: else it grows by the requests in hand alone."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by arrival, the endpoints' names, and the Unix time that second 0 stands for (for the time of week).
    `deployed`: of each endpoint, or empty, where all are alike and as the settings say."""

    arrivals: tuple[Arrival, ...]
    endpoints: tuple[str, ...]
    epoch: float = 0.0
    deployed: tuple[Deployed, ...] = ()

    @property
    def has_tokens(self) -> bool:
        """Whether its requests' tokens are known."""
        return bool(self.arrivals) and self.arrivals[0].has_tokens

    @property
    def span_s(self) -> float:
        """Seconds until the last request arrives."""
        return self.arrivals[-1].at_s if self.arrivals else 0.0
