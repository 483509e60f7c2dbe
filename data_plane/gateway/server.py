"""The HTTP server: every request in, every answer out in one shape, whatever went wrong on the way.

Knows the routes by what it is given; nothing of endpoints or replicas. No path is canonicalised, and no error is
rendered by anyone else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from data_plane.gateway import errors
from data_plane.gateway.answers import Answer
from data_plane.gateway.auth import Auth, require
from data_plane.gateway.client_connection import ClientConnection
from data_plane.gateway.client_request import HeadTooLarge, Request
from data_plane.gateway.exchange import Exchange
from data_plane.router.http1 import Malformed
from data_plane.wire.errors import ApiError
from data_plane.wire.keys import Scope
from data_plane.wire.names import is_name

Handler = Callable[[Exchange, str | None], Awaitable[Answer]]
"""(exchange, endpoint named in the URL) -> the answer."""

BACKLOG = 4096
"""Connections that may come in one moment: one that finds no room there is only tried again after a second. With 1,024
a herd of 2,000 had 975 that were, with this none. The system's own limit (net.core.somaxconn) is the same."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Route:
    """`scopes`: any one is enough; none: open to all. `shared`: also without an endpoint in the URL, or only so."""

    method: str
    handler: Handler
    scopes: tuple[Scope, ...]
    shared: bool = True
    per_endpoint: bool = True


class GatewayServer:
    """Answers requests by a table of routes. `on_end` is told of each exchange when its answer has ended."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        auth: Auth,
        ready: Callable[[], bool],
        on_end: Callable[[Exchange], None],
    ) -> None:
        self.routes = routes
        self._auth = auth
        self._ready = ready
        self._on_end = on_end
        self._listening: asyncio.Server | None = None
        self._connections: set[ClientConnection] = set()
        self._running: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self.leaving = False
        self.cut = False

    @property
    def port(self) -> int:
        """The port it listens on, also where 0 was asked for."""
        assert self._listening is not None
        return int(self._listening.sockets[0].getsockname()[1])

    async def listen(self, host: str, port: int) -> None:
        """Take connections. Raises OSError where the port is taken."""

        def connection() -> ClientConnection:
            return ClientConnection(self._handle, self._refuse_malformed, self._connections)

        self._listening = await asyncio.get_running_loop().create_server(connection, host, port, backlog=BACKLOG)

    def leave(self) -> None:
        """Take no more connections; what comes on those there are is refused, and they end."""
        self.leaving = True
        if self._listening is not None:
            self._listening.close()

    def close(self) -> None:
        """End every connection; each when the client has taken what was sent."""
        for connection in list(self._connections):
            connection.close()

    @property
    def running(self) -> int:
        """Requests being answered now."""
        return len(self._running)

    async def wait_idle(self, timeout_s: float) -> None:
        """Wait until nothing is being answered, `timeout_s` at most. Meant for a server that takes nothing new."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._running:
            self._idle.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._idle.wait()
            except TimeoutError:  # what still runs is the caller's to end
                return

    def cut_off(self) -> None:
        """The drain limit has passed: end what still runs, each with an error of its own."""
        self.cut = True
        for task in list(self._running):
            task.cancel()

    async def _handle(self, request: Request) -> Answer:
        exchange = Exchange.begin(request)
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            answer = await self._answer(exchange)
        except asyncio.CancelledError:
            if not self.cut:
                exchange.outcome, exchange.status = "cancelled", 499
                raise
            answer = self._refuse(exchange, errors.shutting_down())
        except ConnectionError:
            exchange.outcome, exchange.status = "cancelled", 499
            raise
        finally:
            self._running.discard(task)
            if not self._running:
                self._idle.set()
            self._on_end(exchange)
        if self.leaving:
            answer.force_close()
        return answer

    def _refuse_malformed(self, request: Request, fault: Malformed) -> Answer:
        status = 431 if isinstance(fault, HeadTooLarge) else 400
        error = ApiError(status, f"This is not a valid HTTP request: {fault}.", code="bad_request")
        answer = Exchange.begin(request).refuse(error)
        answer.force_close()
        return answer

    async def _answer(self, exchange: Exchange) -> Answer:
        try:
            return await self._dispatch(exchange)
        except ApiError as error:
            return self._refuse(exchange, error)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the last line of defence: logged in full, told in general
            _log.error("request_failed", request_id=exchange.request_id, exc_info=error)
            exchange.outcome = "error"
            words = f"Something went wrong inside the gateway. Its log has request id {exchange.request_id}."
            return self._refuse(exchange, ApiError(500, words, type="server_error", code="internal"))

    def _refuse(self, exchange: Exchange, error: ApiError) -> Answer:
        """An error as the answer; where another answer has begun, its connection breaks: never a clean end."""
        if exchange.request.client.has_begun:
            exchange.note_error(error)
            raise ConnectionResetError(f"an answer had begun when this failed: {error}")
        return exchange.refuse(error)

    async def _dispatch(self, exchange: Exchange) -> Answer:
        request = exchange.request
        # The path as it was sent: nothing is decoded before the key was checked, and nothing else is matched.
        path = request.path
        route = self.routes.get(path)
        if route is None or route.scopes or not route.shared:
            if not self._ready():
                raise errors.not_ready()
            key = self._auth.identify(request.headers.get("authorization"))
            exchange.key, exchange.tenant = key, key.tenant
            endpoint, tail = _split(path)
            route = self._find(path, endpoint, tail)
            require(key, *route.scopes)
        else:
            endpoint, tail = None, path
        exchange.route = tail
        if request.method != route.method:
            raise ApiError(
                405,
                f"{path} takes {route.method}, not {request.method[:20]}.",
                code="method_not_allowed",
                headers={"Allow": route.method},
            )
        if self.leaving and route.scopes:
            raise errors.shutting_down()
        return await route.handler(exchange, endpoint)

    def _find(self, path: str, endpoint: str | None, tail: str) -> Route:
        route = self.routes.get(tail)
        if route is None and tail.startswith("/v1/models/") and len(tail) > len("/v1/models/"):
            route = self.routes["/v1/models/{id}"]
        if route is None or not (route.shared if endpoint is None else route.per_endpoint):
            raise ApiError(404, f"There is nothing at {path[:200]}.", code="unknown_url")
        if endpoint is not None and not is_name(endpoint):
            raise errors.endpoint_not_found(endpoint[:64])
        return route


def _split(path: str) -> tuple[str | None, str]:
    """(endpoint, rest) of `/e/{endpoint}/rest`; (None, path) of every other path."""
    if not path.startswith("/e/"):
        return None, path
    endpoint, slash, rest = path[3:].partition("/")
    return endpoint, slash + rest
