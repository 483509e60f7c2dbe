"""Why an endpoint is in the state it is in, in sentences. Pure; knows nothing of rows, clocks or how they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from control_plane.endpoints.memory import human
from control_plane.placement.eviction import Resident
from control_plane.placement.planner import DeviceView, Need, Spot

MOST_NAMED = 8


@dataclass(frozen=True)
class Holder:
    """Somebody's replica on the device in question."""

    endpoint: str
    bytes: int
    doing: str


@dataclass(frozen=True)
class Facts:
    """What is known of it. Times in seconds since; None: never."""

    endpoint: str
    state: str
    reason: str
    since_s: float | None
    """How long it has been so."""
    obstacle: str | None = None
    ready: int = 0
    desired: int = 0
    min: int = 0
    max: int = 1
    idle_for_s: float | None = None
    has_work: bool | None = None
    retry_in_s: float | None = None
    phases: tuple[str, ...] = ()
    """Of its replicas that have not ended, each in words: `ready on cpu of node box`."""
    spots: tuple[Spot, ...] = ()
    need: Need | None = None


@dataclass(frozen=True)
class Explanation:
    """Sentences, and the numbers they tell."""

    sentences: list[str]
    needs_bytes: int | None = None
    free_bytes: int | None = None
    where: str | None = None
    holders: list[Holder] = field(default_factory=list[Holder])


def explain(facts: Facts, devices: Sequence[DeviceView], residents: Sequence[Resident]) -> Explanation:
    """All that can be said."""
    said = [_state(facts)]
    if facts.phases:
        said.append(f"Its replicas: {'; '.join(facts.phases)}.")
    if facts.state == "zero":
        said.append(_asleep(facts))
    if facts.state == "failed" and facts.retry_in_s is not None:
        wait = f"in {facts.retry_in_s:.0f} s" if facts.retry_in_s > 0 else "by the next request"
        said.append(f"It may be tried again {wait}; 'ebb logs {facts.endpoint}' has what its runner said.")
    if facts.state in ("live", "draining"):
        said.append(_work(facts))
    if facts.obstacle is None or facts.need is None:
        return Explanation(said)
    said.append(facts.obstacle)
    view = _nearest(facts.need, devices)
    if view is None:
        return Explanation(said)
    needs = facts.need.on(view).total_bytes
    free = max(0, view.room_bytes)
    there = [each for each in residents if each.spot == view.spot]
    holders = [Holder(e.endpoint, e.holds_bytes, _doing(e)) for e in sorted(there, key=lambda e: -e.holds_bytes)]
    where = f"{view.device} of node {view.node}"
    said.append(f"It needs {human(needs)}; {where} has {human(free)} free of {human(view.usable_bytes)}.")
    if holders:
        named = [f"'{each.endpoint}' {human(each.bytes)} ({each.doing})" for each in holders[:MOST_NAMED]]
        more = f", and {len(holders) - MOST_NAMED} more" if len(holders) > MOST_NAMED else ""
        said.append(f"The rest is held by {', '.join(named)}{more}.")
    return Explanation(said, needs, free, where, holders)


def duration(seconds: float) -> str:
    """For a sentence: `12 s`, `4 min`, `3 h`, `2 d`."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _state(facts: Facts) -> str:
    words = {"zero": "asleep", "waking": "waking", "live": "live", "draining": "going to sleep", "failed": "failed"}
    since = "" if facts.since_s is None else f" for {duration(facts.since_s)}"
    return f"'{facts.endpoint}' has been {words.get(facts.state, facts.state)}{since}: {facts.reason}"


def _asleep(facts: Facts) -> str:
    if facts.max == 0:
        return f"It may have no replica: 'ebb scale {facts.endpoint} --max 1' lets it wake."
    last = "" if facts.idle_for_s is None else f" Its last work ended {duration(facts.idle_for_s)} ago."
    return f"The next request wakes it.{last}"


def _work(facts: Facts) -> str:
    numbers = f"{facts.ready} of {facts.desired} wanted replicas are ready (min {facts.min}, max {facts.max})"
    if facts.has_work is None:
        return f"{numbers}; no gateway is heard, so nothing is known of its work."
    if facts.has_work:
        return f"{numbers}, and it has work."
    quiet = "since it started" if facts.idle_for_s is None else f"for {duration(facts.idle_for_s)}"
    return f"{numbers}, and it has had no work {quiet}."


def _nearest(need: Need, devices: Sequence[DeviceView]) -> DeviceView | None:
    able = [d for d in devices if need.allows(d) and need.on(d).total_bytes <= d.usable_bytes]
    return max(able, key=lambda d: (d.room_bytes - need.on(d).total_bytes, d.node, d.device), default=None)


def _doing(resident: Resident) -> str:
    if resident.standing != "ready":
        return {"parked": "parked", "coming": "starting", "leaving": "stopping"}[resident.standing]
    if resident.has_work:
        return "at work"
    if not resident.may_go:
        return "its minimum"
    return "idle" if resident.idle_s is None else f"idle for {duration(resident.idle_s)}"
