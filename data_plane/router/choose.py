"""Which replica takes a request. Pure: decided by its arguments alone, so that tests and the simulator can run it.

Knows nothing of HTTP, clocks or where the numbers come from. Affinity to cached prefixes will replace the policy here;
the shape (candidates in, choice with its reason out) stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that could take the request: `slots` it runs at once, `in_flight` it has from this gateway."""

    replica_id: str
    slots: int
    in_flight: int

    @property
    def has_room(self) -> bool:
        """Whether another request would run at once rather than queue inside the runner."""
        return self.in_flight < max(1, self.slots)


@dataclass(frozen=True, slots=True)
class Choice:
    """The replica taken, and why, in a word that may be a log field or a header."""

    replica_id: str
    reason: str


def choose(candidates: Sequence[Candidate]) -> Choice | None:
    """The least loaded in proportion to its slots, ties by id; None where there is nobody to choose."""
    if not candidates:
        return None
    best = min(candidates, key=lambda one: (one.in_flight / max(1, one.slots), one.in_flight, one.replica_id))
    return Choice(best.replica_id, "only" if len(candidates) == 1 else "least_loaded")
