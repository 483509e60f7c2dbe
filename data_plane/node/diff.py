"""From what should run and what runs to what must be done. Pure: no clock, no process, no network."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from data_plane.wire.fleet import DesiredReplica

Condition = Literal["up", "parked", "draining", "stopping", "ended"]
Verb = Literal["start", "park", "unpark", "drain", "stop", "settle", "forget"]


@dataclass(frozen=True, slots=True)
class Running:
    """A replica as the agent holds it. `parked`: told to be. `ended`: its process is gone, which is being reported."""

    id: str
    generation: int
    condition: Condition


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do. `settle`: there is nothing to drain or stop, so report it as stopped."""

    verb: Verb
    id: str
    desired: DesiredReplica | None = None


def diff(desired: Iterable[DesiredReplica], running: Iterable[Running]) -> list[Action]:
    """The actions, in an order in which they can be done one after another.

    A replica id has at most one process at a time: a newer generation starts only when the older one has ended and
    is forgotten. An older generation than the one that runs is a command that came late, and changes nothing.
    """
    wanted: dict[str, DesiredReplica] = {}
    for replica in desired:
        known = wanted.get(replica.id)
        if known is None or known.generation < replica.generation:
            wanted[replica.id] = replica
    actions: list[Action] = []
    held: set[str] = set()
    for replica in running:
        held.add(replica.id)
        actions += _for_held(replica, wanted.get(replica.id))
    for replica_id, want in wanted.items():
        if replica_id not in held:
            actions.append(_begin(want))
    return actions


def _begin(want: DesiredReplica) -> Action:
    return Action("start" if want.intent == "run" else "settle", want.id, want)


def _for_held(replica: Running, want: DesiredReplica | None) -> list[Action]:
    if want is None or want.generation > replica.generation:
        if replica.condition == "ended":
            forget = Action("forget", replica.id)
            return [forget] if want is None else [forget, _begin(want)]
        return [] if replica.condition == "stopping" else [Action("stop", replica.id)]
    if want.generation < replica.generation or replica.condition in ("ended", "stopping"):
        return []
    if want.intent == "stop":
        return [Action("stop", replica.id)]
    if want.intent == "drain" and replica.condition in ("up", "parked"):
        return [Action("drain", replica.id)]
    if want.intent == "park" and replica.condition == "up":
        return [Action("park", replica.id)]
    if want.intent == "run" and replica.condition == "parked":
        return [Action("unpark", replica.id)]
    return []
