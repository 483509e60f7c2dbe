"""Sends a request to replicas until one has begun to answer it, and decides whether a lost one may be sent once more.

Knows nothing of the client's side: what is done with an answer is the caller's.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from data_plane.gateway import errors
from data_plane.gateway.activation import Activation, Ask
from data_plane.gateway.admission import Admitted
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.knowledge import NOTHING_ASKED, Asked
from data_plane.gateway.metrics import Metrics
from data_plane.gateway.quarantine import Quarantine, fingerprint
from data_plane.gateway.resume import Journal
from data_plane.gateway.retry_budget import RetryBudget
from data_plane.gateway.vitals import ReplicaSilent, Vitals, Watch
from data_plane.router.lease import Lease
from data_plane.router.runner_client import RunnerClient, RunnerLost, RunnerUnusable, StreamLost, Upstream
from data_plane.wire.errors import ApiError, ErrorBody
from data_plane.wire.openai import ChatRequest, CompletionRequest, encode
from data_plane.wire.resume import DIED, MOVED, RESUMABLE_HEADER, RESUME_PATH, Kind
from data_plane.wire.routes import EndpointRoute, ReplicaRoute

MOST_TRIES = 3
"""Replicas that one request may be lost with, however it came about."""
MOST_DEATHS = 2
"""Replicas that may die with one request that does not get on: it is what kills them."""
YOUNG = 16
"""Events. One that got on by more since a death is not its cause: what kills a replica kills the next at that place."""
SUSPECT_PAUSE_S = 0.5
"""A newcomer that was on a replica when it died waits so long where others had been on it for longer: they are in
safety by then, should it be the cause."""

_KINDS: dict[str, Kind] = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}


@dataclass(eq=False, slots=True)
class Call:
    """A request that was found good, and how far it has come. `deadline` is of the wait for a replica."""

    exchange: Exchange
    route: EndpointRoute
    path: str
    sent: ChatRequest | CompletionRequest
    body: bytes
    hold_s: float
    deadline: float
    created: int
    admitted: Admitted
    aim: Asked = NOTHING_ASKED
    seed: int | None = None
    """The client's own."""
    replica: ReplicaRoute | None = None
    lost: int = 0
    deaths: int = 0
    died_at: int = 0
    """How far it had come when a replica last died with it."""
    sent_at: float = 0.0
    aboard_s: list[float] = field(default_factory=list[float])
    """How long it was on each replica that died with it before anything of it was seen."""
    resuming: bytes | None = None
    journal: Journal = field(default_factory=Journal)

    @property
    def fingerprint(self) -> bytes:
        """Its name in quarantine: of what the client sent, without the seed that was chosen for it."""
        asked = msgspec.structs.replace(self.sent, seed=self.seed)
        return fingerprint(self.exchange.tenant, self.path, encode(asked))


@dataclass(slots=True)
class Begun:
    """An answer that has begun. Count `watch.signs` up with what comes of it."""

    upstream: Upstream
    watch: Watch
    lease: Lease


def any_seed() -> int:
    """A seed for a request that has none, so that its answer is the same on every replica, and can be gone on with."""
    return random.getrandbits(63)  # it guards nothing: a number from the system would cost a call of it


class Attempts:
    """One for all requests."""

    def __init__(
        self,
        activation: Activation,
        runners: RunnerClient,
        vitals: Vitals,
        metrics: Metrics,
        replicas: Callable[[str], int],
    ) -> None:
        self._activation = activation
        self._runners = runners
        self._vitals = vitals
        self._metrics = metrics
        self._replicas = replicas
        self.budget = RetryBudget()
        self.quarantine = Quarantine()

    def note_request(self, call: Call) -> None:
        """A new request. ApiError 500 for one that is in quarantine."""
        now = _now()
        self.budget.note_request(call.route.id, now)
        if self.quarantine and self.quarantine.holds(call.fingerprint, now):
            raise errors.poisonous(call.route.name)

    def begun(self, call: Call) -> "Attempt":
        """A replica's answer, begun; its lease and its connection are given back together when this ends.

        Raises ApiError where there is none, StreamLost where the replica dies while the answer is read.
        """
        return Attempt(self, call)

    async def try_one(self, call: Call) -> Begun | None:
        """One replica's answer, begun; None where it was lost and another may be asked. Raises ApiError."""
        lease = await self._acquire(call)
        call.replica = replica = lease.replica
        call.exchange.note_route(lease)
        call.exchange.tries += 1
        watch = self._vitals.watch(call.route.id, replica)
        watch.begin()
        try:
            try:
                upstream = await self._open(call, replica)
            except BaseException as error:  # a cancellation too: it may be the watch's own, who then says so
                watch.end(error)
                raise
        except (ReplicaSilent, RunnerUnusable) as error:
            lost: Exception = error
        except BaseException:  # whatever it was, the place is free
            lease.give_back()
            raise
        else:
            if upstream.is_stream:  # a whole answer ends in this very moment, which counts as much
                lease.on_answer()
            return Begun(upstream, watch, lease)
        with lease:
            failure = await self._judge(call, replica, lost)
        if failure is not None:
            raise failure
        self._metrics.retries.add(call.route.name)
        return None

    def ended(self, begun: Begun, error: BaseException | None) -> None:
        """The answer was read, or is not read any further."""
        with begun.lease:
            begun.upstream.close()
            try:
                begun.watch.end(error)
            except ReplicaSilent as silent:
                raise StreamLost(str(silent)) from silent
            if error is None:
                self._vitals.answered(begun.lease.replica)

    async def _acquire(self, call: Call) -> Lease:
        exchange = call.exchange
        about = call.route.id, call.route.name, exchange.request_id, len(call.body)
        ask = Ask(*about, exchange.arrived, call.deadline, call.aim, call.admitted.claim)
        if call.resuming is not None:
            return await self._activation.acquire(
                ask, lambda _is_cold: None
            )  # what its wait was is told by what was sent
        try:
            return await self._activation.acquire(ask, exchange.hold)
        finally:
            exchange.release()

    async def go_on(self, call: Call, lost: StreamLost) -> ErrorBody | None:
        """Makes of `call` what another replica goes on from; the error that ends it where that cannot be."""
        journal, replica = call.journal, call.replica
        assert replica is not None
        parting = journal.parting()
        if parting == MOVED:
            self._leave(call, replica, "moved")
            failure = None
        else:
            failure = await self._judge(call, replica, lost, is_dead=parting == DIED)
        if failure is not None:
            is_poison = failure.body.code == "request_poisonous"
            return failure.body if is_poison else errors.stream_interrupted(f"{lost}; {failure.body.message}")
        if not journal.can_resume:
            return errors.stream_interrupted(str(lost))
        call.resuming = journal.request(_KINDS[call.path], call.body)
        call.deadline = _now() + call.hold_s
        return None

    async def _open(self, call: Call, replica: ReplicaRoute) -> Upstream:
        call.sent_at = _now()
        headers = {**call.exchange.upstream_headers(), RESUMABLE_HEADER: str(call.created)}
        path, body = (call.path, call.body) if call.resuming is None else (RESUME_PATH, call.resuming)
        upstream = await self._runners.open(replica, "POST", path, body, headers)
        if call.exchange.first_byte_s is None:
            call.exchange.first_byte_s = _now() - call.exchange.arrived
        return upstream

    async def _judge(
        self, call: Call, replica: ReplicaRoute, lost: Exception, *, is_dead: bool = False
    ) -> ApiError | None:
        """Leaves the replica alone; what ends the request, or None where another replica may have it."""
        aboard_s = _now() - call.sent_at
        self._leave(call, replica, type(lost).__name__.lower())
        crowd = self._vitals.crowd(replica)
        if not isinstance(lost, RunnerLost | StreamLost | ReplicaSilent):
            return None  # it did nothing with the request
        num_replicas = self._replicas(call.route.id)
        self.budget.note_death(call.route.id, replica.url, len(crowd) + 1, num_replicas, _now())
        call.lost += 1
        if not isinstance(lost, ReplicaSilent):
            is_dead = is_dead or await self._vitals.examine(replica) == "gone"
            if is_dead and (failure := self._note_death(call, aboard_s)) is not None:
                return failure
        why = str(lost)
        if call.lost >= MOST_TRIES:
            return errors.upstream_failed(call.route.name, call.lost, why)
        if not self.budget.spend(call.route.id, _now()):
            return errors.too_many_retries(call.route.name, why)
        if is_dead and call.journal.num_events <= YOUNG and any(signs > YOUNG for signs in crowd):
            await asyncio.sleep(SUSPECT_PAUSE_S)
        return None

    def _note_death(self, call: Call, aboard_s: float) -> ApiError | None:
        come = call.journal.num_events
        # nothing was seen of it: then what kills a replica takes about as long on the next one
        is_alike = come > 0 or any(_is_alike(aboard_s, before_s) for before_s in call.aboard_s)
        is_there_again = call.deaths > 0 and come <= call.died_at + YOUNG and is_alike
        call.deaths = call.deaths + 1 if is_there_again else 1
        call.died_at = come
        if come == 0:
            call.aboard_s.append(aboard_s)
        if call.deaths < MOST_DEATHS:
            return None
        self.quarantine.add(call.fingerprint, _now())
        self._metrics.poisonous.add(call.route.name)
        return errors.poisonous(call.route.name)

    def _leave(self, call: Call, replica: ReplicaRoute, why: str) -> None:
        self._metrics.ejections.add(call.route.name, why)
        self._vitals.eject(call.route.id, replica)


class Attempt:
    """Replicas asked one after the other until one answers, for as long as its answer is read. A context manager of its
    own: contextlib's costs 10 us a request."""

    def __init__(self, attempts: Attempts, call: Call) -> None:
        self._attempts = attempts
        self._call = call
        self._begun: Begun | None = None

    async def __aenter__(self) -> Begun:
        while (begun := await self._attempts.try_one(self._call)) is None:
            pass  # that one was lost, and there may be others
        self._begun = begun
        return begun

    async def __aexit__(self, _: object, error: BaseException | None, _trace: object) -> None:
        assert self._begun is not None, "it was entered"
        self._attempts.ended(self._begun, error)


def _is_alike(one_s: float, other_s: float) -> bool:
    """Whether the same may have come to the same place in these times, on two replicas with other loads."""
    less_s, more_s = min(one_s, other_s), max(one_s, other_s)
    return more_s <= 4 * less_s + 0.05


def _now() -> float:
    return asyncio.get_running_loop().time()
