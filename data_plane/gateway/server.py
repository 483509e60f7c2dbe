"""The HTTP server: every request in, every answer out in one shape, whatever went wrong on the way.

Knows the routes by what it is given; nothing of endpoints or replicas. It stands on aiohttp's low-level server, so that
no path is canonicalised and no error is rendered by anyone else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from data_plane.gateway import errors
from data_plane.gateway.auth import Auth, require
from data_plane.gateway.exchange import Exchange
from data_plane.wire.errors import ApiError, invalid
from data_plane.wire.keys import Scope
from data_plane.wire.names import is_name

Handler = Callable[[Exchange, str | None], Awaitable[web.StreamResponse]]
"""(exchange, endpoint named in the URL) -> the answer."""

HEAD_TIMEOUT_S = 10.0
"""From a connection's or a request's first byte to the end of the request's head."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Route:
    """`scopes`: any one is enough; none: open to all. `shared`: also without an endpoint in the URL, or only so."""

    method: str
    handler: Handler
    scopes: tuple[Scope, ...]
    shared: bool = True
    per_endpoint: bool = True


class _Connection(web.RequestHandler):
    """Renders also those errors in the wire's shape that are found before there is a request, and gives up on a
    client that begins a request's head and does not end it."""

    _has_request = False
    _head_since: float | None = None
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._has_request and self._head_since is None:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().connection_lost(exc)

    def begin(self) -> None:
        """A request's head has come."""
        self._has_request = True
        self._head_since = None

    def end(self) -> None:
        """It is answered. Until the next one's first byte, keep-alive has its own limit."""
        self._has_request = False

    def _await_head(self) -> None:
        """One timer serves all requests of a connection: most heads come whole, and setting a timer is not free."""
        loop = asyncio.get_running_loop()
        self._head_since = loop.time()
        if self._head_timer is None:
            self._head_timer = loop.call_later(HEAD_TIMEOUT_S, self._check_head)

    def _check_head(self) -> None:
        self._head_timer = None
        if self._head_since is None:
            return
        loop = asyncio.get_running_loop()
        left_s = self._head_since + HEAD_TIMEOUT_S - loop.time()
        if left_s <= 0.001:
            self.force_close()
        else:
            self._head_timer = loop.call_later(left_s, self._check_head)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            # the client has gone, or an answer has begun that no other may follow: the connection ends here, unclean
            raise ConnectionResetError("nothing more is sent on this connection") from exc
        if status >= 500:
            _log.error("connection_failed", status=status, exc_info=exc)
            error = ApiError(status, "Something went wrong inside the gateway.", type="server_error", code="internal")
        else:
            reason = (message or "it is malformed").strip().splitlines()[0][:200]
            error = ApiError(status, f"This is not a valid HTTP request: {reason}", code="bad_request")
        response = Exchange.begin(request).refuse(error)
        response.force_close()
        return response


class GatewayServer(web.Server):
    """Answers requests by a table of routes. `on_end` is told of each exchange when its answer has ended."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        auth: Auth,
        most_body_bytes: int,
        ready: Callable[[], bool],
        on_end: Callable[[Exchange], None],
    ) -> None:
        # handler_cancellation: a client that goes takes its request with it, down to the runner
        super().__init__(self._handle, request_factory=self._request, handler_cancellation=True)
        self.routes = routes
        self._auth = auth
        self._most_body_bytes = most_body_bytes
        self._ready = ready
        self._on_end = on_end
        self._running: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self.leaving = False
        self.cut = False

    def __call__(self) -> web.RequestHandler:
        # a compressed body is refused (Exchange.body), not unpacked: small ones could become any size
        return _Connection(self, loop=asyncio.get_running_loop(), keepalive_timeout=75.0, auto_decompress=False)

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

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        assert isinstance(protocol, _Connection)
        protocol.begin()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=self._most_body_bytes)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = Exchange.begin(request)
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            response = await self._answer(exchange)
        except asyncio.CancelledError:
            if not self.cut:
                exchange.outcome, exchange.status = "cancelled", 499
                raise
            response = self._refuse(exchange, errors.shutting_down())
        except ConnectionError:
            exchange.outcome, exchange.status = "cancelled", 499
            raise
        finally:
            connection = request.protocol
            assert isinstance(connection, _Connection)
            connection.end()
            self._running.discard(task)
            if not self._running:
                self._idle.set()
            self._on_end(exchange)
        if self.leaving:
            response.force_close()
        return response

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
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

    def _refuse(self, exchange: Exchange, error: ApiError) -> web.StreamResponse:
        """An error as the answer; where another answer has begun, its connection breaks: never a clean end."""
        if exchange.request.writer.output_size > 0:
            exchange.note_error(error)
            raise ConnectionResetError(f"an answer had begun when this failed: {error}")
        return exchange.refuse(error)

    async def _dispatch(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        for name in ("Host", "Authorization"):  # whoever stands in front may have gone by the other one
            if len(request.headers.getall(name, ())) > 1:
                raise invalid(f"There is more than one {name} header.", name.lower())
        # The path as it was sent: nothing is decoded before the key was checked, and nothing else is matched.
        path = request.rel_url.raw_path
        route = self.routes.get(path)
        if route is None or route.scopes or not route.shared:
            if not self._ready():
                raise errors.not_ready()
            key = self._auth.identify(request.headers.get("Authorization"))
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
