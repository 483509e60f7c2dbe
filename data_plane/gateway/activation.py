"""Hold and wake: a request for an endpoint without a ready replica waits in line while one is started.

Zero to one is done here, in the request's path; everything else about scale is the control plane's. Knows nothing of
HTTP: time is the event loop's clock, waking is one call it is given.
"""

import asyncio
import time
from bisect import insort
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data_plane.gateway import errors
from data_plane.gateway.control import Backoff, ControlUnavailable, NoSuchEndpoint
from data_plane.gateway.knowledge import NOTHING_ASKED, Asked, Knowledge
from data_plane.gateway.settings import HoldLimits
from data_plane.router.lease import InFlight, Lease
from data_plane.router.table import RouteTable
from data_plane.wire.errors import ApiError
from data_plane.wire.routes import EndpointRoute, WakeAnswer

Wake = Callable[[str, str, int], Coroutine[Any, Any, WakeAnswer]]
"""(endpoint id, id of the oldest waiting request, how many wait) -> the control plane's answer."""


@dataclass(frozen=True)
class Ask:
    """One request for a replica. Times are the loop's; `deadline` is when holding it ends."""

    endpoint_id: str
    endpoint: str
    request_id: str
    body_bytes: int
    arrived: float
    deadline: float
    asked: Asked = NOTHING_ASKED


@dataclass(eq=False)
class _Waiter:
    ask: Ask
    turn: "asyncio.Future[Lease]"
    known_failure: tuple[str | None, float | None] | None
    """The failure this request was let in over: it is a new attempt, so that failure is not its end."""


def _failure(route: EndpointRoute) -> tuple[str | None, float | None] | None:
    return (route.reason, route.retry_at) if route.state == "failed" else None


def _oldest_first(waiter: _Waiter) -> float:
    return waiter.ask.arrived


@dataclass(eq=False)
class _Line:
    endpoint_id: str
    waiters: list[_Waiter] = field(default_factory=list[_Waiter])
    waiting_bytes: int = 0
    waking: "asyncio.Task[None] | None" = None

    def add(self, waiter: _Waiter) -> None:
        insort(self.waiters, waiter, key=_oldest_first)
        self.waiting_bytes += waiter.ask.body_bytes

    def remove(self, waiter: _Waiter) -> None:
        if waiter in self.waiters:
            self.waiters.remove(waiter)
            self.waiting_bytes -= waiter.ask.body_bytes

    def fail(self, waiter: _Waiter, error: ApiError) -> None:
        self.remove(waiter)
        if not waiter.turn.done():
            waiter.turn.set_exception(error)

    def fail_all(self, make_error: Callable[[Ask], ApiError]) -> None:
        for waiter in list(self.waiters):
            self.fail(waiter, make_error(waiter.ask))

    def stop_waking(self) -> None:
        if self.waking is not None:
            self.waking.cancel()
            self.waking = None


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
        self._wake = wake
        self._limits = limits
        self._lines: dict[str, _Line] = {}
        self._nudges: dict[str, asyncio.Task[None]] = {}
        self._closed = False
        in_flight.on_return = self._move

    def waiting(self, endpoint_id: str) -> tuple[int, int]:
        """(requests, bytes) in the endpoint's line."""
        line = self._lines.get(endpoint_id)
        return (len(line.waiters), line.waiting_bytes) if line else (0, 0)

    async def acquire(self, ask: Ask, on_hold: Callable[[], None]) -> Lease:
        """A place on a replica, at once or after a wait; the caller gives it back.

        `on_hold` is called when the request has to wait. Raises ApiError: 404 deleted, 503 for a full line, a deadline
        passed, a model that cannot start, a gateway that leaves.
        """
        if self._closed:
            raise errors.shutting_down()
        route = self._route(ask)
        line = self._lines.get(ask.endpoint_id)
        if line is None or not line.waiters:
            lease = self._borrow(route, ask, with_room=False)
            if lease is not None:
                return lease
        self._refuse_failed(route)
        on_hold()
        if ask.deadline <= _now():
            self._nudge(ask)
            raise self._too_late(ask)
        return await self._wait(ask, route)

    async def _wait(self, ask: Ask, route: EndpointRoute) -> Lease:
        line = self._lines.get(ask.endpoint_id) or _Line(ask.endpoint_id)
        self._refuse_full(line, ask, route)
        self._lines[ask.endpoint_id] = line
        waiter = _Waiter(ask, asyncio.get_running_loop().create_future(), _failure(route))
        line.add(waiter)
        self._move(ask.endpoint_id)
        try:
            async with asyncio.timeout_at(ask.deadline):
                return await waiter.turn
        except TimeoutError:
            self._drop_lease(waiter)
            raise self._too_late(ask) from None
        except asyncio.CancelledError:
            self._drop_lease(waiter)
            raise
        finally:
            line.remove(waiter)
            if not line.waiters:
                line.stop_waking()
                if self._lines.get(ask.endpoint_id) is line:
                    del self._lines[ask.endpoint_id]

    def _drop_lease(self, waiter: _Waiter) -> None:
        """The turn may come in the very moment in which its request goes."""
        if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
            waiter.turn.result().give_back()

    def table_changed(self, endpoint_ids: list[str]) -> None:
        """The routes of these endpoints changed: release, fail or start waking their lines."""
        for endpoint_id in endpoint_ids:
            self._move(endpoint_id)

    def close(self) -> None:
        """The gateway leaves: all who wait are told, and nobody waits from now on."""
        self._closed = True
        for line in list(self._lines.values()):
            line.stop_waking()
            line.fail_all(lambda _ask: errors.shutting_down())
        for nudge in self._nudges.values():
            nudge.cancel()

    def check(self) -> None:
        """Every line has waiters, and its bytes are theirs."""
        for line in self._lines.values():
            assert line.waiters, f"an empty line was kept for {line.endpoint_id}"
            assert line.waiting_bytes == sum(waiter.ask.body_bytes for waiter in line.waiters), "bytes do not balance"

    def _move(self, endpoint_id: str) -> None:
        """Bring a line to where the routes and free places allow: oldest first, paced by slots."""
        line = self._lines.get(endpoint_id)
        if line is None or self._closed:
            return
        route = self._table.get(endpoint_id)
        if route is None:
            line.fail_all(_deleted)
            return
        while line.waiters:
            waiter = line.waiters[0]
            lease = self._borrow(route, waiter.ask, with_room=True)
            if lease is None:
                break
            line.remove(waiter)
            if waiter.turn.done():
                lease.give_back()
            else:
                waiter.turn.set_result(lease)
        if not line.waiters or self._table.usable(endpoint_id, _now()):
            line.stop_waking()
            return
        if route.state == "failed":
            for waiter in [one for one in line.waiters if one.known_failure != _failure(route)]:
                line.fail(waiter, errors.model_failed(route.name, route.reason))
        if line.waiters and (line.waking is None or line.waking.done()):
            line.waking = asyncio.get_running_loop().create_task(self._keep_waking(line))

    async def _keep_waking(self, line: _Line) -> None:
        """Tell the control plane at once, and again while anyone waits: a wake may be lost with its receiver."""
        backoff = Backoff(first_s=0.1, most_s=self._limits.wake_every_s)
        while line.waiters:
            pause_s = self._limits.wake_every_s
            try:
                oldest = line.waiters[0].ask.request_id
                answer = await self._wake(line.endpoint_id, oldest, len(line.waiters))
                backoff.reset()
            except NoSuchEndpoint:
                line.fail_all(_deleted)
                return
            except ControlUnavailable:  # requests wait on: the next wake, or their deadlines, settle it
                pause_s = backoff.next_s()
            else:
                if answer.state == "failed":
                    line.fail_all(partial(_failed, answer.reason))
                    return
            await asyncio.sleep(pause_s)

    def _nudge(self, ask: Ask) -> None:
        """Wake once for a request that does not wait: its client will come again."""
        if ask.endpoint_id in self._nudges:
            return

        async def nudge() -> None:
            try:
                await self._wake(ask.endpoint_id, ask.request_id, 1)
            except (ControlUnavailable, NoSuchEndpoint):  # the client was answered 503 and will ask again
                return
            finally:
                self._nudges.pop(ask.endpoint_id, None)

        self._nudges[ask.endpoint_id] = asyncio.get_running_loop().create_task(nudge())

    def _borrow(self, route: EndpointRoute, ask: Ask, *, with_room: bool) -> Lease | None:
        now = _now()
        replicas = self._table.usable(route.id, now)
        choice = self._knowledge.choose(route.id, replicas, ask.asked, now, with_room=with_room)
        if choice is None:
            return None
        replica = next(one for one in replicas if one.id == choice.replica_id)
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

    def _refuse_full(self, line: _Line, ask: Ask, route: EndpointRoute) -> None:
        limits = self._limits
        too_many = len(line.waiters) >= limits.most_requests
        if too_many or line.waiting_bytes + ask.body_bytes > limits.most_bytes:
            raise errors.queue_full(route, len(line.waiters), line.waiting_bytes)

    def _too_late(self, ask: Ask) -> ApiError:
        now = _now()
        route = self._route(ask)
        return errors.model_loading(route, now - ask.arrived, self._table.eta_s(ask.endpoint_id, now))


def _failed(reason: str | None, ask: Ask) -> ApiError:
    return errors.model_failed(ask.endpoint, reason)


def _deleted(ask: Ask) -> ApiError:
    return errors.endpoint_not_found(ask.endpoint)


def _now() -> float:
    return asyncio.get_running_loop().time()
