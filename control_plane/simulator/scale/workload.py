"""What is replayed: requests to many endpoints, by time. Knows no file format and no policy."""

from dataclasses import dataclass


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
class Trace:
    """Requests by arrival, the endpoints' names, and the Unix time that second 0 stands for (for the time of week)."""

    arrivals: tuple[Arrival, ...]
    endpoints: tuple[str, ...]
    epoch: float = 0.0

    @property
    def has_tokens(self) -> bool:
        """Whether its requests' tokens are known."""
        return bool(self.arrivals) and self.arrivals[0].has_tokens

    @property
    def span_s(self) -> float:
        """Seconds until the last request arrives."""
        return self.arrivals[-1].at_s if self.arrivals else 0.0
