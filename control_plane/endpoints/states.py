"""What a replica may become, and what an endpoint therefore is. Pure; knows nothing of rows, nodes or processes.

`transition` guards every change of a replica's status; `endpoint_state` derives the rest; `after_failure` says when a
failed endpoint may try again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from data_plane.wire.fleet import Intent, ReplicaPhase
from data_plane.wire.routes import EndpointState

PHASES: tuple[ReplicaPhase, ...] = get_args(ReplicaPhase)
STARTING: tuple[ReplicaPhase, ...] = ("placing", "starting", "loading", "warming")
"""Phases on the way to ready, in their order."""
COMING: tuple[ReplicaPhase, ...] = (*STARTING, "parked")
"""The same, and one that only has to take its KV memory again: the nearest to ready."""
ENDED: tuple[ReplicaPhase, ...] = ("stopped", "failed")

LEGAL: dict[ReplicaPhase, frozenset[ReplicaPhase]] = {
    "placing": frozenset({"starting", "loading", "warming", "ready", "parked", "draining", "stopped", "failed"}),
    "starting": frozenset({"loading", "warming", "ready", "parked", "draining", "stopped", "failed"}),
    "loading": frozenset({"warming", "ready", "parked", "draining", "stopped", "failed"}),
    "warming": frozenset({"ready", "parked", "draining", "stopped", "failed"}),
    "ready": frozenset({"parked", "draining", "stopped", "failed"}),
    "parked": frozenset({"ready", "draining", "stopped", "failed"}),
    "draining": frozenset({"stopped", "failed"}),
    "stopped": frozenset(),
    "failed": frozenset(),
}
"""A report may have missed phases, so a replica may skip ahead. Only between ready and parked may it go back."""

FAILED_STARTS_IN_A_ROW = 3
"""So many starts may end without a verdict (killed, lost) before the endpoint is failed."""
SETTLED_S = 60.0
"""A replica that was ready this long proves that the endpoint can run: its end is no failed start. One that ends every
minute is still started ten times in ten minutes, and no oftener."""
PROVEN_S = 10.0
"""A half-open circuit's one start must have been ready this long before others follow it."""
GROWTH = 5.0
LONGEST_BACKOFF_S = 120.0
"""With the three starts before the circuit opens these are ten in the first ten minutes, and five in any later ten.
Doubling up to 60 s would be eighteen, and whatever goes from 1 s to no more than 60 s is at least eleven."""


class IllegalMove(ValueError):
    """A replica was told to become what it cannot."""


def may_become(now: ReplicaPhase, then: ReplicaPhase) -> bool:
    """Whether `transition` would accept the move (staying the same is none)."""
    return then in LEGAL[now]


def transition(replica_id: str, now: ReplicaPhase, to: ReplicaPhase) -> ReplicaPhase:
    """The phase `to`, where a replica that is in phase `now` may become it.

    Raises:
        IllegalMove: the move is not in `LEGAL`.
    """
    if not may_become(now, to):
        raise IllegalMove(
            f"Replica {replica_id} is {now} and cannot become {to}; "
            f"from there it may become {', '.join(sorted(LEGAL[now])) or 'nothing, it has ended'}."
        )
    return to


@dataclass(frozen=True)
class ReplicaView:
    """All that an endpoint's state depends on."""

    status: ReplicaPhase
    intent: Intent


def serves(replica: ReplicaView) -> bool:
    """Whether gateways may send requests to it."""
    return replica.status == "ready" and replica.intent == "run"


def is_coming(replica: ReplicaView) -> bool:
    """Whether it is on its way to serve. A parked one is, once it was told to run again."""
    return replica.status in COMING and replica.intent == "run"


def is_parked(replica: ReplicaView) -> bool:
    """Whether it holds memory for its weights, serves nobody and is not coming."""
    return replica.status == "parked" and replica.intent == "park"


def endpoint_state(desired: int, replicas: Iterable[ReplicaView], *, failed: bool) -> EndpointState:
    """The one word for an endpoint. `failed`: its circuit is open, no start is to be tried for now."""
    present = [replica for replica in replicas if replica.status not in ENDED and not is_parked(replica)]
    if any(serves(replica) for replica in present):
        return "live"
    if any(is_coming(replica) for replica in present):
        return "waking"
    if failed:
        return "failed"
    if desired > 0:
        return "waking"
    return "draining" if present else "zero"


def waking_phase(replicas: Iterable[ReplicaView]) -> ReplicaPhase:
    """How far the most advanced coming replica is; `placing` where there is none yet."""
    coming = [COMING.index(replica.status) for replica in replicas if is_coming(replica)]
    return COMING[max(coming, default=0)]


@dataclass(frozen=True)
class Circuit:
    """An endpoint's memory of failed starts. `retry_at` (Unix seconds) is set exactly while the circuit is open."""

    failures: int = 0
    """Starts in a row that ended without a verdict or with a bad one."""
    opens: int = 0
    """Times in a row that the circuit opened: the exponent of the back-off."""
    retry_at: float | None = None

    @property
    def is_open(self) -> bool:
        return self.retry_at is not None

    @property
    def is_half_open(self) -> bool:
        """It was open, and nothing since has proved that the endpoint can run."""
        return self.opens > 0 and self.retry_at is None


def backoff_s(opens: int) -> float:
    """1, 5, 25, 120, 120 … s."""
    return min(LONGEST_BACKOFF_S, GROWTH ** min(opens - 1, 16))


def after_failure(circuit: Circuit, *, fatal: bool, lived_s: float | None, now: float) -> Circuit:
    """The circuit after a replica failed. `lived_s`: how long it had been ready, None if it never was."""
    if lived_s is not None and lived_s >= SETTLED_S:
        return Circuit()
    failures = circuit.failures + 1
    if circuit.is_open:
        # it was begun before the circuit opened, like those that opened it
        return Circuit(failures, circuit.opens, circuit.retry_at)
    # a verdict of "trying again will not help" is about starting; one that was ready has disproved it
    hopeless = fatal and lived_s is None
    if not hopeless and failures < FAILED_STARTS_IN_A_ROW:
        return Circuit(failures, circuit.opens, circuit.retry_at)
    opens = circuit.opens + 1
    return Circuit(failures, opens, now + backoff_s(opens))


def half_open(circuit: Circuit, now: float) -> Circuit | None:
    """The circuit with which one more start may be tried, or None where it is not yet time."""
    if circuit.retry_at is None:
        return circuit
    if now < circuit.retry_at:
        return None
    return Circuit(circuit.failures, circuit.opens, None)
