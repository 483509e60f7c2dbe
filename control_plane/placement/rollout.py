"""Which replicas of an endpoint to start and which to let go. Pure; knows nothing of nodes, memory or rows.

A new revision is started beside the old one and the old is let go as the new becomes ready (surge: one). There are
never more coming and serving replicas than desired + 1, and never more than desired of the current revision. What runs
on a node that is drained counts as old, whatever its revision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data_plane.wire.fleet import Intent, ReplicaPhase

SURGE = 1
SURPLUS = "There are more replicas than desired."
COMING: tuple[ReplicaPhase, ...] = ("placing", "starting", "loading", "warming", "parked")
"""A parked one comes once it was told to run again."""


@dataclass(frozen=True)
class Copy:
    """One replica that has not ended. `created_at` in Unix seconds; `leaves`: the node it is on, if that is drained."""

    id: str
    generation: int
    status: ReplicaPhase
    intent: Intent
    created_at: float
    leaves: str | None = None
    proven: bool = False
    """It has been ready for a while."""

    @property
    def counts(self) -> bool:
        """Whether it serves or is coming to serve."""
        return self.intent == "run" and self.status in (*COMING, "ready")

    @property
    def ready(self) -> bool:
        return self.intent == "run" and self.status == "ready"


@dataclass(frozen=True)
class Steps:
    """How many replicas of the current generation to start, and whom to let go, with the reason."""

    start: int = 0
    release: tuple[tuple[str, str], ...] = ()


def next_steps(
    copies: Sequence[Copy], desired: int, generation: int, *, may_start: bool, is_probe: bool = False
) -> Steps:
    """What brings `copies` nearer to `desired` replicas of `generation`. `may_start`: the circuit is not open.
    `is_probe`: it is half open, so one is started alone, and others once one has proved itself."""
    live = [copy for copy in copies if copy.counts]
    current = [copy for copy in live if copy.generation == generation and copy.leaves is None]
    old = [copy for copy in live if copy.generation != generation or copy.leaves is not None]
    release = [(copy.id, SURPLUS) for copy in _surplus(current, desired)]
    ready = sum(copy.ready for copy in current)
    # old ones that never served have nothing to bridge; of the others as many stay as the new ones do not yet replace
    bridging = max(0, desired - ready)
    serving = sorted((copy for copy in old if copy.ready), key=lambda copy: (-copy.generation, copy.created_at))
    release += [(copy.id, _why(copy, generation)) for copy in old if not copy.ready]
    release += [(copy.id, _why(copy, generation)) for copy in serving[bridging:]]
    staying = len(serving[:bridging])
    missing = max(0, desired - len(current))
    room = max(0, desired + SURGE - len(current) - staying)
    start = min(missing, room) if may_start else 0
    if is_probe and not any(copy.proven for copy in live if copy.generation == generation):
        start = min(start, 0 if current else 1)
    return Steps(start, tuple(release))


def _why(copy: Copy, generation: int) -> str:
    if copy.generation == generation:
        return f"Node {copy.leaves} is drained."
    return f"Revision {generation} replaces it."


def _surplus(current: list[Copy], desired: int) -> list[Copy]:
    """Those that are not yet ready first, the newest of them first."""
    count = max(0, len(current) - desired)
    order = sorted(current, key=lambda copy: (copy.status != "ready", copy.created_at), reverse=True)
    return order[:count]
