"""What is replayed: requests to many endpoints, by time. Knows no file format and no policy."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `busy_s` is how long it takes a replica from its beginning to its end, once it is its turn."""

    at_s: float
    endpoint: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by arrival, the endpoints' names, and the Unix time that second 0 stands for (for the time of week)."""

    arrivals: tuple[Arrival, ...]
    endpoints: tuple[str, ...]
    epoch: float = 0.0

    @property
    def span_s(self) -> float:
        """Seconds until the last request arrives."""
        return self.arrivals[-1].at_s if self.arrivals else 0.0
