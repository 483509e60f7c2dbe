"""Asks the pure files again what they once decided, from what was stored of it, and compares the answers. Knows nothing
of where decisions are kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from control_plane.autoscaler import keepalive, policy
from control_plane.placement import eviction, planner
from control_plane.simulator.errors import SimulationError

Stored = Mapping[str, Any]


@dataclass(frozen=True)
class Replayed:
    """One decision, then and now. `same` is None where nothing decided it: somebody asked."""

    id: int
    at: str
    kind: str
    subject: str
    policy: str
    then: str
    now: str
    same: bool | None
    reason: str


def replay(decision: Stored, changes: Mapping[str, Any] | None = None) -> Replayed:
    """The decision made again. `changes`: other values by dotted path into its inputs (`limits.idle_s`: 300).

    Raises SimulationError for a path that leads nowhere, or inputs that no longer make sense.
    """
    inputs = _changed(cast("dict[str, Any]", decision["inputs"]), changes or {})
    outcome = cast("dict[str, Any]", decision["outcome"])
    try:
        then, now, reason = _ask(decision["policy"], inputs, outcome)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise SimulationError(
            f"Decision {decision['id']} cannot be made again: {error}. Another version stored it, or --set gave a "
            "value of the wrong kind."
        ) from error
    same = None if decision["policy"] == "request" else then == now
    about = (int(decision["id"]), str(decision["at"]), decision["kind"], decision["subject"], decision["policy"])
    return Replayed(*about, then, now, same, reason)


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """`limits.idle_s=300` and the like; values are JSON. Raises SimulationError."""
    found: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        try:
            found[path.strip()] = json.loads(value)
        except ValueError as error:
            raise SimulationError(
                f"--set takes PATH=VALUE with a value in JSON, and was given '{text[:80]}'."
            ) from error
        if not equals or not path.strip():
            raise SimulationError(f"--set takes PATH=VALUE, such as limits.idle_s=300, and was given '{text[:80]}'.")
    return found


def _ask(name: str, inputs: dict[str, Any], outcome: dict[str, Any]) -> tuple[str, str, str]:
    """The answer then, the answer now, and its reason."""
    if name == "autoscaler":
        observed = msgspec.convert(inputs["observed"], policy.Observation)
        limits = msgspec.convert(inputs["limits"], policy.Limits)
        answer = policy.decide(observed, limits, float(inputs["now"]))
        return str(outcome["to"]), str(answer.desired), answer.reason
    if name == "keepalive":
        plan = msgspec.convert(inputs["plan"], keepalive.Plan)
        woken = keepalive.wake(plan, float(inputs["began_at"]), float(inputs["now"]))
        return str(outcome["to"]), str(int(woken.is_due)), plan.reason
    if name == "planner":
        devices = msgspec.convert(inputs["devices"], list[planner.DeviceView])
        placed = planner.plan_gang(devices, msgspec.convert(inputs["need"], planner.Need), int(inputs["ranks"]))
        then = f"{outcome['device']} of {outcome['node']}"
        if isinstance(placed, planner.NoRoom):
            return then, "nowhere", placed.message
        return then, ", ".join(f"{each.device} of {each.node}" for each in placed), "By the planner's order of devices."
    if name in ("eviction", "turn"):
        there = msgspec.convert(inputs["residents"], list[eviction.Resident])
        missing = int(inputs["missing_bytes"])
        found = eviction.turn(there, missing) if name == "turn" else None
        gone = (found,) if found else eviction.evict(there, missing, is_first=bool(inputs["is_first"])) or ()
        loss = eviction.loss_of(gone)
        reason = f"What is lost is {loss:.4f} s of waiting a second." if gone else "Nobody may go."
        return _listed(outcome["victims"]), _listed(each.replica_id for each in gone), reason
    return str(outcome.get("to", "")), str(outcome.get("to", "")), "It was asked for: nothing was decided."


def _listed(ids: Any) -> str:
    return ", ".join(sorted(str(each)[:8] for each in ids)) or "nobody"


def _changed(inputs: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    copy = cast("dict[str, Any]", json.loads(json.dumps(inputs)))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place: Any = copy
        for name in parents:
            place = _inside(place, name, path)
        _inside(place, last, path)
        place[int(last) if isinstance(place, list) else last] = value
    return copy


def _inside(place: Any, name: str, path: str) -> Any:
    try:
        return place[int(name)] if isinstance(place, list) else place[name]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        there = ", ".join(map(str, cast("dict[str, Any]", place))) if isinstance(place, dict) else "a list or a value"
        raise SimulationError(f"--set {path}: there is no '{name}'; there is {there}.") from error
