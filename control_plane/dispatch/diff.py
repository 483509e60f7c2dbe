"""Desired against observed, for one node. Pure; knows nothing of rows, HTTP, other nodes or why something is desired.

A report is the whole truth about a node: what it does not name is not there. Replicas are compared by id and
generation; one that is observed and not desired needs no command, for the agent stops what it is not told to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data_plane.wire.fleet import Intent, ObservedReplica, ReplicaPhase, StartFailure

PICK_UP_S = 30.0
"""A node that reports, and has not begun with a replica after this long, will not."""
BEFORE_ENDING: tuple[ReplicaPhase, ...] = (
    "placing", "starting", "loading", "warming", "ready", "parked", "draining"
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """One replica that is desired on the node, as the rows have it. `placed_for_s`: how long ago it was placed."""

    id: str
    generation: int
    status: ReplicaPhase
    intent: Intent
    placed_for_s: float


@dataclass(frozen=True)
class Seen:
    """The replica is there: note what was observed of it, and move it to `to` where that is not None."""

    id: str
    observed: ObservedReplica
    to: ReplicaPhase | None


@dataclass(frozen=True)
class Ended:
    """The replica is no more. `failure` is None where that was wanted."""

    id: str
    observed: ObservedReplica | None
    failure: StartFailure | None


@dataclass(frozen=True)
class Stray:
    """Observed and not desired: the agent will stop it."""

    id: str


Change = Seen | Ended | Stray


def compare(wanted: Sequence[Wanted], observed: Sequence[ObservedReplica]) -> tuple[Change, ...]:
    """What the report changes, in the order of `wanted`, strays last."""
    there = {(replica.id, replica.generation): replica for replica in observed}
    changes = [_judge(want, there.pop((want.id, want.generation), None)) for want in wanted]
    strays = [Stray(replica.id) for replica in there.values() if replica.phase in BEFORE_ENDING]
    return tuple(change for change in changes if change is not None) + tuple(strays)


def _judge(want: Wanted, found: ObservedReplica | None) -> Change | None:
    if found is None:
        return _judge_absent(want)
    if found.phase == "failed":
        return Ended(want.id, found, found.failure or StartFailure("The runner ended and left no reason.", False))
    if found.phase == "stopped":
        if want.intent == "run":
            return Ended(
                want.id, found, found.failure or StartFailure("The runner ended without being told to.", False)
            )
        return Ended(want.id, found, None)
    ahead = BEFORE_ENDING.index(found.phase) > BEFORE_ENDING.index(want.status)
    unparked = want.status == "parked" and found.phase == "ready"
    return Seen(want.id, found, found.phase if ahead or unparked else None)


def _judge_absent(want: Wanted) -> Change | None:
    if want.intent != "run":
        return Ended(want.id, None, None)
    if want.status != "placing":
        return Ended(want.id, None, StartFailure("The node no longer has this replica.", False))
    if want.placed_for_s > PICK_UP_S:
        message = f"The node reports, but did not begin with this replica within {PICK_UP_S:g} s."
        return Ended(want.id, None, StartFailure(message, False))
    return None
