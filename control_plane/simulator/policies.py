"""The policies that are compared: Ebb's own, and what other gateways do. Knows nothing of time but what it is told.

Every gateway has a policy of its own, which sees what that gateway sent and, where it listens, the replicas' reports.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from control_plane.simulator.replica import Job
from control_plane.simulator.workload import Session
from data_plane.router.choose import Want, choose
from data_plane.router.loads import Loads, Report
from data_plane.router.prefixes import PrefixIndex
from data_plane.router.ring import ring_of

EXPECT_S = 60.0
"""How long what was sent is taken as held before a report says so."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a policy knows of the replicas before any request: their ids and slots, and the size of a block."""

    replicas: tuple[str, ...]
    slots: int
    block_tokens: int
    prefix_blocks: int

    def prefix(self, chain: Sequence[int]) -> str:
        """The key of a prompt's beginning, for policies that hash it."""
        return str(chain[min(len(chain), self.prefix_blocks) - 1]) if chain else ""


class Policy(Protocol):
    """Chooses a replica by its number, and is told what became of the requests it placed."""

    listens: bool
    """Whether it wants the replicas' reports."""

    def pick(self, job: Job, session: Session, now: float) -> int: ...

    def answered(self, job: Job, now: float) -> None: ...

    def ended(self, job: Job, now: float) -> None: ...

    def reported(
        self, replica: int, report: Report, stored: Sequence[int], evicted: Sequence[int], now: float
    ) -> None: ...


class _InFlight(ABC):
    """What all policies without reports have in common: they count the requests that they sent."""

    listens = False

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.in_flight = [0] * len(fleet.replicas)
        self._turn = 0

    def pick(self, job: Job, session: Session, now: float) -> int:
        """Choose, and count."""
        at = self.choose(job, session, now)
        self.in_flight[at] += 1
        return at

    @abstractmethod
    def choose(self, job: Job, session: Session, now: float) -> int:
        """The policy itself."""

    def least(self) -> int:
        """The replica with the fewest requests; equals take turns."""
        self._turn += 1
        count = len(self.in_flight)
        return min(range(count), key=lambda at: (self.in_flight[at], (at - self._turn) % count))

    def answered(self, job: Job, now: float) -> None:  # noqa: B027 - there is nothing to do, in any of them
        """Nothing that these policies look at."""

    def ended(self, job: Job, now: float) -> None:
        """One less."""
        self.in_flight[job.replica] -= 1

    def reported(  # noqa: B027 - as above
        self, replica: int, report: Report, stored: Sequence[int], evicted: Sequence[int], now: float
    ) -> None:
        """They do not listen."""


class RoundRobin(_InFlight):
    """One after the other, whatever they have to do (GPUStack, and most load balancers)."""

    def choose(self, job: Job, session: Session, now: float) -> int:
        """The next."""
        self._turn += 1
        return self._turn % len(self.in_flight)


class LeastLoad(_InFlight):
    """The fewest requests in flight from this gateway (KubeAI's LeastLoad)."""

    def choose(self, job: Job, session: Session, now: float) -> int:
        """The least."""
        return self.least()


class LeastWork(_InFlight):
    """The fewest prompt tokens still to be computed, as if replicas told at once: the ideal router, where all replicas
    hold the same. Not among those compared."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._open: list[list[Job]] = [[] for _ in fleet.replicas]

    def choose(self, job: Job, session: Session, now: float) -> int:
        """The least; one with a place in its batch before one without, and of equals the fewest requests."""
        at = min(range(len(self._open)), key=self._work)
        self._open[at].append(job)
        return at

    def _work(self, at: int) -> tuple[bool, int, int]:
        count = self.in_flight[at]
        return count >= self.fleet.slots, sum(job.expected_tokens for job in self._open[at]), count

    def answered(self, job: Job, now: float) -> None:
        """Its prompt is computed."""
        self._open[job.replica].remove(job)


class SessionHash(_InFlight):
    """The client's session, or the prompt's beginning where it names none, on a plain ring: load plays no part."""

    def choose(self, job: Job, session: Session, now: float) -> int:
        """The first on the ring."""
        key = session.key or self.fleet.prefix(job.request.chain)
        return self.fleet.replicas.index(next(ring_of(self.fleet.replicas).walk(key)))


class BoundedHash(_InFlight):
    """The prompt's beginning on a ring with bounded loads of 1.25 (KubeAI's PrefixHash)."""

    def choose(self, job: Job, session: Session, now: float) -> int:
        """The first on the ring that has room under the bound."""
        loads = dict(zip(self.fleet.replicas, self.in_flight, strict=True))
        member = ring_of(self.fleet.replicas).pick(self.fleet.prefix(job.request.chain), loads)
        return self.fleet.replicas.index(member)


class ApproximateTree(_InFlight):
    """A tree per replica of all that was ever sent there (SGLang's and vLLM's routers; their default thresholds).

    The best match where it is more than 30 % of the prompt, else the smallest tree; the fewest requests while these
    are out of balance by more than 64 and by half. It never learns what a replica evicted.
    """

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._trees = PrefixIndex(most_per_replica=1 << 62)
        self._numbers = {replica: at for at, replica in enumerate(fleet.replicas)}

    def choose(self, job: Job, session: Session, now: float) -> int:
        """By match, by size or by load."""
        chain = job.request.chain
        at = self._at(chain)
        self._trees.store(self.fleet.replicas[at], chain)
        return at

    def _at(self, chain: Sequence[int]) -> int:
        most, fewest = max(self.in_flight), min(self.in_flight)
        if most - fewest > 64 and most > 1.5 * fewest:
            return self.least()
        held = self._trees.match(chain, 0.0)
        best = max(held, key=lambda replica: held[replica], default=None)
        if best is not None and held[best] > 0.3 * len(chain):
            return self._numbers[best]
        return min(range(len(self.in_flight)), key=lambda at: self._trees.known(self.fleet.replicas[at]))


class Ebb:
    """The gateway's own files: what is held by PrefixIndex, work by Loads, the choice by choose."""

    listens = True

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._numbers = {replica: at for at, replica in enumerate(fleet.replicas)}
        self._index = PrefixIndex()
        self._loads = Loads()

    def pick(self, job: Job, session: Session, now: float) -> int:
        """As the gateway does it."""
        fleet, request = self._fleet, job.request
        want = Want(
            prompt_tokens=request.prompt_tokens,
            session=session.key,
            prefix=fleet.prefix(request.chain),
            held=self._index.match(request.chain, now),
            chunk_tokens=fleet.block_tokens,
        )
        choice = choose([self._loads.candidate(replica, fleet.slots) for replica in fleet.replicas], want)
        assert choice is not None, "a fleet has replicas"
        self._index.expect(choice.replica_id, request.chain, now + EXPECT_S)
        self._loads.sent(choice.replica_id, job, max(1, request.prompt_tokens - choice.matched_tokens), now)
        return self._numbers[choice.replica_id]

    def answered(self, job: Job, now: float) -> None:
        """Its prompt is computed."""
        self._loads.answered(self._fleet.replicas[job.replica], job, now)

    def ended(self, job: Job, now: float) -> None:
        """It is over."""
        self._loads.ended(self._fleet.replicas[job.replica], job, now)

    def reported(self, replica: int, report: Report, stored: Sequence[int], evicted: Sequence[int], now: float) -> None:
        """As the gateway's follower does it."""
        replica_id = self._fleet.replicas[replica]
        self._index.evict(replica_id, evicted)
        self._index.store(replica_id, stored)
        self._loads.reported(replica_id, report, now)


POLICIES: dict[str, Callable[[Fleet], Policy]] = {
    "ebb": Ebb,
    "chwbl": BoundedHash,
    "tree": ApproximateTree,
    "round-robin": RoundRobin,
    "least-load": LeastLoad,
    "session": SessionHash,
}
"""By the names that --policies takes."""
