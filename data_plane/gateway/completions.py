"""Chat and text completions: check, hold, send to a replica, relay; again elsewhere where a replica is lost in time.

Knows nothing of keys or metrics' names; the parts it uses are given to it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from data_plane.gateway import errors
from data_plane.gateway.activation import Activation, Ask
from data_plane.gateway.demand import Demand
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.knowledge import Asked
from data_plane.gateway.metrics import Metrics
from data_plane.gateway.patience import Patience
from data_plane.gateway.settings import GatewaySettings
from data_plane.router import sse
from data_plane.router.runner_client import RunnerClient, RunnerLost, RunnerUnusable, StreamLost, Upstream
from data_plane.router.table import RouteTable
from data_plane.wire.errors import ApiError, ErrorBody, ErrorEnvelope, invalid
from data_plane.wire.openai import ChatRequest, CompletionRequest, encode, parse_chat, parse_completion
from data_plane.wire.prefix_chain import chain_of
from data_plane.wire.routes import EndpointRoute, ReplicaRoute

MOST_TRIES = 3
"""Replicas that one request may be lost with: one that kills its runners must not kill them all."""


@dataclass(frozen=True)
class Call:
    """A request that was found good, ready to be sent."""

    exchange: Exchange
    route: EndpointRoute
    path: str
    body: bytes
    streams: bool
    deadline: float
    asked: Asked


class Completions:
    """Serves the two inference routes."""

    def __init__(
        self,
        settings: GatewaySettings,
        table: RouteTable,
        activation: Activation,
        runners: RunnerClient,
        demand: Demand,
        metrics: Metrics,
        is_cut: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._table = table
        self._activation = activation
        self._runners = runners
        self._demand = demand
        self._metrics = metrics
        self._is_cut = is_cut

    async def chat(self, exchange: Exchange, endpoint: str | None) -> web.StreamResponse:
        """POST …/v1/chat/completions."""
        return await self._serve(exchange, endpoint, parse_chat, "/v1/chat/completions")

    async def complete(self, exchange: Exchange, endpoint: str | None) -> web.StreamResponse:
        """POST …/v1/completions."""
        return await self._serve(exchange, endpoint, parse_completion, "/v1/completions")

    async def _serve(
        self,
        exchange: Exchange,
        endpoint: str | None,
        parse: Callable[[bytes], ChatRequest | CompletionRequest],
        path: str,
    ) -> web.StreamResponse:
        route = named_endpoint(self._table, exchange, endpoint) if endpoint else None
        raw = await exchange.body(self._settings.most_body_bytes, self._settings.body_timeout_s)
        hold_s = exchange.hold_s(self._settings.hold.default_hold_s)
        parsed = parse(raw)
        route = endpoint_for(self._table, exchange, route, parsed.model)
        # whose request it is says where it goes; a runner has no use for it
        body = encode(msgspec.structs.replace(parsed, model=route.name, user=None, prompt_cache_key=None))
        session = exchange.session or parsed.prompt_cache_key or parsed.user
        asked = Asked(chain_of(parsed, exchange.tenant), session)
        call = Call(exchange, route, path, body, bool(parsed.stream), exchange.arrived + hold_s, asked)
        with self._demand.working(route.id):
            return await (self._stream(call) if call.streams else self._whole(call))

    async def _whole(self, call: Call) -> web.StreamResponse:
        async with self._upstream(call) as upstream:
            body = upstream.body
            if body is None:
                raise errors.upstream_failed(call.route.name, 1, "it streamed what was not asked to be a stream")
            return self._pass_on(call, upstream, body)

    async def _stream(self, call: Call) -> web.StreamResponse:
        exchange = call.exchange
        failure: ApiError | None = None
        async with contextlib.AsyncExitStack() as stack:
            upstream: Upstream | None = None
            async with Patience(exchange, self._settings.stream, lambda: self._progress(call)) as patience:
                try:
                    upstream = await stack.enter_async_context(self._upstream(call))
                except ApiError as error:
                    failure = error
                except asyncio.CancelledError:
                    if not self._is_cut():
                        raise
                    failure = errors.shutting_down()
            response = patience.response
            if upstream is None:
                assert failure is not None
                if response is None:
                    raise failure
                exchange.note_error(failure)
                return await _end_with(response, failure.body)
            if upstream.body is not None:
                if response is None:
                    return self._pass_on(call, upstream, upstream.body)
                return await _end_with(response, self._note_upstream_error(call, upstream.body))
            if response is None:
                response = exchange.stream()
                await response.prepare(exchange.request)
            else:
                # its headers went out before there was a route to tell of
                await response.write(sse.comment(f"x-ebb-route: {exchange.headers.get('x-ebb-route', '')}"))
            await self._relay(call, upstream, response)
            return response

    async def _relay(self, call: Call, upstream: Upstream, response: web.StreamResponse) -> None:
        try:
            while events := await upstream.read_events():
                await response.write(events)
        except StreamLost as lost:
            call.exchange.outcome = "interrupted"
            self._metrics.interrupted.labels(call.route.name).inc()
            self._activation.avoid(call.route.id, call.exchange.replica)
            await _end_with(response, errors.stream_interrupted(str(lost)))
            return
        except asyncio.CancelledError:
            if not self._is_cut():
                raise
            call.exchange.outcome = "interrupted"
            await _end_with(response, errors.shutting_down().body)
            return
        if upstream.failed:
            call.exchange.outcome = "error"
        # Many clients hang up on [DONE]: by then they have all of the answer, so that is no cancellation.
        with contextlib.suppress(ConnectionError):
            await response.write_eof()

    @contextlib.asynccontextmanager
    async def _upstream(self, call: Call) -> AsyncGenerator[Upstream]:
        """A replica's answer, begun; its lease and its connection are given back together when this ends."""
        exchange = call.exchange
        ask = Ask(
            call.route.id,
            call.route.name,
            exchange.request_id,
            len(call.body),
            exchange.arrived,
            call.deadline,
            call.asked,
        )
        lost = 0
        while True:
            try:
                lease = await self._activation.acquire(ask, exchange.hold)
            finally:
                exchange.release()
            with lease:
                exchange.note_route(lease)
                exchange.tries += 1
                try:
                    upstream = await self._open(call, lease.replica)
                except RunnerUnusable as error:
                    lost += isinstance(error, RunnerLost)
                    self._note_unusable(call, lease.replica, error)
                    if lost >= MOST_TRIES:
                        raise errors.upstream_failed(call.route.name, lost, str(error)) from error
                    continue
                lease.on_answer()
                try:
                    yield upstream
                finally:
                    upstream.close()
                return

    async def _open(self, call: Call, replica: ReplicaRoute) -> Upstream:
        upstream = await self._runners.open(replica, "POST", call.path, call.body, call.exchange.upstream_headers())
        exchange = call.exchange
        exchange.first_byte_s = asyncio.get_running_loop().time() - exchange.arrived
        return upstream

    def _note_unusable(self, call: Call, replica: ReplicaRoute, error: RunnerUnusable) -> None:
        self._activation.avoid(call.route.id, replica.id)
        self._metrics.ejections.labels(call.route.name, type(error).__name__.lower()).inc()
        self._metrics.retries.labels(call.route.name).inc()

    def _pass_on(self, call: Call, upstream: Upstream, body: bytes) -> web.StreamResponse:
        if upstream.status >= 400:
            self._note_upstream_error(call, body)
        return call.exchange.plain(upstream.status, body, upstream.headers)

    def _note_upstream_error(self, call: Call, body: bytes) -> ErrorBody:
        """The error in a runner's refusal; where it is none, the stream ends as interrupted."""
        try:
            error = msgspec.json.decode(body, type=ErrorEnvelope).error
        except msgspec.DecodeError:
            error = errors.stream_interrupted("it answered a stream with something else")
        call.exchange.outcome = "client_error" if error.type == "invalid_request_error" else "error"
        call.exchange.code = error.code or ""
        return error

    def _progress(self, call: Call) -> str:
        """What a held stream says of its wait."""
        route = self._table.get(call.route.id)
        if route is None or route.replicas:
            return "waiting"
        eta_s = self._table.eta_s(route.id, asyncio.get_running_loop().time())
        eta = "" if eta_s is None else f" eta={eta_s:.0f}"
        return f"waking phase={route.phase or route.state}{eta}"


def named_endpoint(table: RouteTable, exchange: Exchange, name: str) -> EndpointRoute:
    """The tenant's endpoint of that name; 404 ApiError where there is none or it is another tenant's."""
    route = table.find(exchange.tenant, name)
    if route is None:
        raise errors.endpoint_not_found(name)
    exchange.endpoint, exchange.model = route.name, route.model
    return route


def endpoint_for(
    table: RouteTable, exchange: Exchange, route: EndpointRoute | None, model: str | None
) -> EndpointRoute:
    """The endpoint that the URL names, or else `model`. In an endpoint's URL `model` may be left out, not be wrong."""
    if route is not None:
        if model not in (None, route.name, route.model):
            hint = f"This URL is endpoint '{route.name}' with model '{route.model}': use either name, or leave it out."
            raise errors.model_not_found(str(model), hint)
        return route
    if model is None:
        raise invalid("Missing required parameter: 'model', the name of an endpoint.", "model", "model_required")
    found = table.find(exchange.tenant, model)
    if found is None:
        raise errors.model_not_found(model, "GET /v1/models lists what there is.")
    exchange.endpoint, exchange.model = found.name, found.model
    return found


async def _end_with(response: web.StreamResponse, error: ErrorBody) -> web.StreamResponse:
    """The last event of a stream that failed: the error, and no [DONE]."""
    await response.write(sse.event(msgspec.json.encode(ErrorEnvelope(error))))
    await response.write_eof()
    return response
