"""A place on a replica for each request: at once where one is free, else in turn, waking the endpoint if need be.

Zero to one is done here, in the request's path; everything else about scale is the control plane's. A replica is sent
little more than it runs at once, so that what is too much waits here, where it is bounded, fair and can be refused.
Knows nothing of HTTP: time is the event loop's clock, waking is one call it is given.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from data_plane.gateway import errors
from data_plane.gateway.fairness import Claim, Ledger
from data_plane.gateway.knowledge import NOTHING_ASKED, Asked, Knowledge
from data_plane.gateway.line import Bounds, Line, Place
from data_plane.gateway.pace import Pace, retry_after_s
from data_plane.gateway.settings import HoldLimits
from data_plane.gateway.waking import Wake, Waker
from data_plane.router.choose import Choice
from data_plane.router.lease import InFlight, Lease
from data_plane.router.table import RouteTable
from data_plane.wire.errors import ApiError
from data_plane.wire.routes import EndpointRoute, ReplicaRoute

LOOK_AHEAD = 16
"""Of one key's waiting requests so many are looked at for the one that a free place suits best. On two saturated
replicas the place that comes free is as likely as not the other one's: without this whoever waits loses its cache."""


@dataclass(slots=True)
class Ask:
    """One request for a replica. Times are the loop's; `deadline` is when holding it ends."""

    endpoint_id: str
    endpoint: str
    request_id: str
    body_bytes: int
    arrived: float
    deadline: float
    asked: Asked = NOTHING_ASKED
    claim: Claim = field(default_factory=Claim)


@dataclass(eq=False, slots=True)
class _Waiter(Place):
    ask: Ask
    turn: "asyncio.Future[Lease]"
    known_failure: tuple[str | None, float | None] | None
    """The failure this request was let in over: it is a new attempt, so that failure is not its end."""


class _Queue:
    """One endpoint's line, and how all in it end together."""

    def __init__(self, bounds: Bounds) -> None:
        self.line: Line[_Waiter] = Line(bounds)
        self.look_at = math.inf
        """When somebody stops waiting for the replica that holds its prompt."""
        self._timer: asyncio.TimerHandle | None = None

    def look_again(self, move: Callable[[], None] | None) -> None:
        """Call `move` at `look_at`, and at no other time that was asked for before; None: never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if move is not None and self.look_at < math.inf:
            self._timer = asyncio.get_running_loop().call_at(self.look_at, move)

    def fail(self, waiter: _Waiter, error: ApiError) -> None:
        self.line.remove(waiter)
        if not waiter.turn.done():
            waiter.turn.set_exception(error)

    def fail_all(self, make_error: Callable[[Ask], ApiError]) -> None:
        for waiter in list(self.line):
            self.fail(waiter, make_error(waiter.ask))

    def oldest(self) -> tuple[str, int] | None:
        return (self.line.oldest.ask.request_id, len(self.line)) if self.line else None

    def deleted(self) -> None:
        self.fail_all(_deleted)

    def failed(self, reason: str | None) -> None:
        self.fail_all(partial(_failed, reason))


class Activation:
    """All lines of waiting requests. `table_changed` and `in_flight.on_return` are what moves them."""

    def __init__(
        self,
        table: RouteTable,
        in_flight: InFlight,
        wake: Wake,
        limits: HoldLimits,
        knowledge: Knowledge | None = None,
    ) -> None:
        self._table = table
        self._knowledge = knowledge or Knowledge()
        self._in_flight = in_flight
        self._limits = limits
        self._bounds = Bounds(limits.most_requests, limits.most_bytes)
        self._queues: dict[str, _Queue] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._paces: dict[str, Pace] = {}
        self._waker = Waker(wake, limits.wake_every_s)
        self._closed = False
        in_flight.on_return = self._returned

    def waiting(self, endpoint_id: str) -> tuple[int, int]:
        """(requests, bytes) in the endpoint's line."""
        queue = self._queues.get(endpoint_id)
        return (len(queue.line), queue.line.size_bytes) if queue else (0, 0)

    def wait_s(self, endpoint_id: str) -> float | None:
        """How long whoever joins the endpoint's line is likely to wait; None where nothing is known of it."""
        now = _now()
        if not self._table.usable(endpoint_id, now):
            return self._table.eta_s(endpoint_id, now)
        pace = self._paces.get(endpoint_id)
        return pace.wait_s(self.waiting(endpoint_id)[0] + 1, now) if pace else None

    def claim(self, endpoint_id: str, party: str, rank: int, tokens: int) -> Claim:
        """A request of `party` begins: what it is served counts against its next ones. `disclaim` it at its end."""
        ledger = self._ledgers.get(endpoint_id)
        if ledger is None:
            ledger = self._ledgers[endpoint_id] = Ledger()
        return Claim(ledger.open(party), rank, tokens)

    def disclaim(self, endpoint_id: str, claim: Claim) -> None:
        """The request has ended."""
        ledger = self._ledgers[endpoint_id]
        ledger.close(claim.account)
        if ledger.is_idle:
            del self._ledgers[endpoint_id]

    async def acquire(self, ask: Ask, on_hold: Callable[[bool], None]) -> Lease:
        """A place on a replica, at once or after a wait; the caller gives it back.

        `on_hold` is called when the request has to wait, with whether that is for the endpoint to wake. Raises
        ApiError: 404 deleted, 503 for a full line, a deadline passed, a model that cannot start, a gateway that leaves.
        """
        if self._closed:
            raise errors.shutting_down()
        route = self._route(ask)
        if not self.waiting(ask.endpoint_id)[0]:
            choice = self._choose(ask)
            if isinstance(choice, Choice):
                ask.claim.charge()
                return self._lease(route, ask, choice)
        self._refuse_failed(route)
        on_hold(not self._table.usable(ask.endpoint_id, _now()))
        if ask.deadline <= _now():
            raise self._too_late(ask)
        return await self._wait(ask, route)

    async def _wait(self, ask: Ask, route: EndpointRoute) -> Lease:
        queue = self._queues.get(ask.endpoint_id) or _Queue(self._bounds)
        turn: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        latest = self._latest(ask, route)
        waiter = _Waiter(ask.claim, ask.arrived, ask.body_bytes, ask, turn, _failure(route), latest=latest)
        self._refuse_full(queue, waiter, route)
        self._queues[ask.endpoint_id] = queue
        queue.line.push(waiter)
        self._move(ask.endpoint_id)
        try:
            async with asyncio.timeout_at(ask.deadline):
                return await waiter.turn
        except TimeoutError:
            self._drop_lease(waiter)
            queue.line.remove(waiter)
            raise self._too_late(ask) from None
        except asyncio.CancelledError:
            self._drop_lease(waiter)
            raise
        finally:
            queue.line.remove(waiter)
            if not queue.line and self._queues.get(ask.endpoint_id) is queue:
                self._waker.stop(ask.endpoint_id)
                queue.look_again(None)
                del self._queues[ask.endpoint_id]

    def _drop_lease(self, waiter: _Waiter) -> None:
        """The turn may come in the very moment in which its request goes."""
        if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
            waiter.turn.result().give_back()

    def table_changed(self, endpoint_ids: list[str]) -> None:
        """The routes of these endpoints changed: release, fail or start waking their lines."""
        for endpoint_id in endpoint_ids:
            if self._table.get(endpoint_id) is None:
                self._paces.pop(endpoint_id, None)
            self._move(endpoint_id)

    def close(self) -> None:
        """The gateway leaves: all who wait are told, and nobody waits from now on."""
        self._closed = True
        self._waker.close()
        for queue in list(self._queues.values()):
            queue.fail_all(lambda _ask: errors.shutting_down())

    def check(self) -> None:
        """Every line has waiters, and all books balance; AssertionError where they do not."""
        for endpoint_id, queue in self._queues.items():
            assert queue.line, f"an empty line was kept for {endpoint_id}"
            queue.line.check()
        for endpoint_id, ledger in self._ledgers.items():
            assert not ledger.is_idle, f"an idle ledger was kept for {endpoint_id}"
            ledger.check()

    def _returned(self, endpoint_id: str) -> None:
        if self._table.get(endpoint_id) is not None:
            self._paces.setdefault(endpoint_id, Pace()).note(_now())
        self._move(endpoint_id)

    def _move(self, endpoint_id: str) -> None:
        """Bring a line to where the routes and free places allow: in its order, paced by slots."""
        queue = self._queues.get(endpoint_id)
        if queue is None or self._closed:
            return
        route = self._table.get(endpoint_id)
        if route is None:
            queue.deleted()
            return
        line, queue.look_at = queue.line, math.inf
        while line:
            begins = self._begins(route)
            waiter = line.head(begins)
            if waiter.turn.done():  # its request goes in this very moment
                line.remove(waiter)
                continue
            picked = self._pick(queue, endpoint_id, begins)
            if picked is None:
                break
            waiter, choice = picked
            line.take(waiter)
            waiter.turn.set_result(self._lease(route, waiter.ask, choice))
        queue.look_again(partial(self._move, endpoint_id))
        if not line or self._table.usable(endpoint_id, _now()):
            self._waker.stop(endpoint_id)
            return
        if route.state == "failed":
            for waiter in [one for one in line if one.known_failure != _failure(route)]:
                queue.fail(waiter, errors.model_failed(route.name, route.reason))
        if line:
            self._waker.keep(endpoint_id, queue)

    def _begins(self, route: EndpointRoute) -> float:
        """When a prompt would be begun that is let go now; only asked where there is a latency to hold."""
        if route.wait_s is None:
            return -math.inf
        now = _now()
        open_to = [replica for replica in self._table.usable(route.id, now) if self._has_room(replica)]
        return now + min(
            [one.place_s + one.before_s for one in self._knowledge.times(route.id, open_to, NOTHING_ASKED, now)],
            default=0.0,
        )

    def _latest(self, ask: Ask, route: EndpointRoute) -> float:
        """When the prompt must be begun for the endpoint's latency to be held."""
        if route.wait_s is None:
            return math.inf
        now = _now()
        times = self._knowledge.times(route.id, self._table.usable(route.id, now), ask.asked, now)
        return ask.arrived + route.wait_s - min([one.own_s for one in times], default=0.0)

    def _pick(self, queue: _Queue, endpoint_id: str, begins: float) -> tuple[_Waiter, Choice] | None:
        """Who goes next, and where: the first of the head's own whose replica has room, so that a place that comes free
        is taken by one whose prompt begins there; else the first of them who is not better off waiting for its own."""
        usable = self._table.usable(endpoint_id, _now())
        open_to = {replica.id for replica in usable if self._has_room(replica)}
        ahead = [one for one in queue.line.ahead(LOOK_AHEAD, begins) if not one.turn.done()]
        if 0 < len(open_to) < len(usable):
            for waiter in ahead:
                home = self._knowledge.home(endpoint_id, usable, waiter.ask.asked, _now())
                if home is not None and home.replica_id in open_to:
                    return waiter, home
        for waiter in ahead:
            choice = self._choose(waiter.ask)
            if isinstance(choice, Choice):
                return waiter, choice
            if choice is None:
                return None
            queue.look_at = min(queue.look_at, choice)
        return None

    def _choose(self, ask: Ask) -> Choice | float | None:
        """One of those with room, or the one that holds what this begins with, even if that has somewhat more than
        its share. None where nobody has room; or when to look again, where it is better off waiting for its own."""
        endpoint_id, asked, now = ask.endpoint_id, ask.asked, _now()
        usable = self._table.usable(endpoint_id, now)
        open_to = [replica for replica in usable if self._has_room(replica)]
        if 0 < len(open_to) < len(usable):
            home = self._knowledge.home(endpoint_id, usable, asked, now)
            if home is not None:
                own = next(replica for replica in usable if replica.id == home.replica_id)
                if self._in_flight.of_replica(own.id) < self._limits.most_at_home(own.slots):
                    return home
                there, *others = self._knowledge.times(endpoint_id, [own, *open_to], asked, now)
                elsewhere_s = min(one.answer_s for one in others)
                # no longer than it would take elsewhere: so it takes at most twice the better of both
                until = ask.arrived + elsewhere_s
                if there.answer_s < elsewhere_s and now < until < ask.deadline:
                    return until
        return self._knowledge.choose(endpoint_id, open_to, asked, now)

    def _has_room(self, replica: ReplicaRoute) -> bool:
        """Whether it would run another request at once, or have it ready for when a slot comes free."""
        return self._in_flight.of_replica(replica.id) < self._limits.most_on_replica(replica.slots)

    def _lease(self, route: EndpointRoute, ask: Ask, choice: Choice) -> Lease:
        now = _now()
        replica = next(one for one in self._table.usable(route.id, now) if one.id == choice.replica_id)
        lease = self._in_flight.borrow(route.id, replica, choice.reason)
        self._knowledge.sent(lease, ask.asked, choice.matched_tokens, now)
        return lease

    def _route(self, ask: Ask) -> EndpointRoute:
        route = self._table.get(ask.endpoint_id)
        if route is None:
            raise _deleted(ask)
        return route

    def _refuse_failed(self, route: EndpointRoute) -> None:
        """A failed endpoint is tried again by the first request after `retry_at`, and fails all before it at once."""
        if route.state == "failed" and (route.retry_at is None or time.time() < route.retry_at):
            raise errors.model_failed(route.name, route.reason)

    def _refuse_full(self, queue: _Queue, waiter: _Waiter, route: EndpointRoute) -> None:
        fault = queue.line.fault(waiter)
        if fault is not None:
            expected_s = self.wait_s(route.id)
            again_s = retry_after_s(
                errors.DEFAULT_RETRY_AFTER_S if expected_s is None else expected_s,
                random.random(),  # noqa: S311 - spreads load, guards nothing
            )
            in_line = len(queue.line), queue.line.size_bytes
            mine = waiter.claim.account.waiting if fault == "share" else None
            raise errors.queue_full(route, *in_line, mine, again_s)

    def _too_late(self, ask: Ask) -> ApiError:
        """What its deadline ends a request with. One that waited for a start will come again: the start goes on."""
        now = _now()
        route = self._route(ask)
        expected_s = self.wait_s(ask.endpoint_id)
        again_s = errors.DEFAULT_RETRY_AFTER_S if expected_s is None else retry_after_s(expected_s)
        if self._table.usable(ask.endpoint_id, now):
            running, waiting = self._in_flight.of_endpoint(route.id), self.waiting(route.id)[0]
            return errors.saturated(route, running, waiting, now - ask.arrived, again_s)
        self._waker.nudge(ask.endpoint_id, ask.request_id, again_s)
        return errors.model_loading(route, now - ask.arrived, expected_s, again_s)


def _failure(route: EndpointRoute) -> tuple[str | None, float | None] | None:
    return (route.reason, route.retry_at) if route.state == "failed" else None


def _failed(reason: str | None, ask: Ask) -> ApiError:
    return errors.model_failed(ask.endpoint, reason)


def _deleted(ask: Ask) -> ApiError:
    return errors.endpoint_not_found(ask.endpoint)


def _now() -> float:
    return asyncio.get_running_loop().time()
