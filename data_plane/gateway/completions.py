"""Chat and text completions: check, hold, send to a replica, relay; and go on elsewhere where a replica is lost.

Knows nothing of keys or metrics' names; the parts it uses are given to it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from data_plane.gateway import errors
from data_plane.gateway.admission import Admission
from data_plane.gateway.answers import Answer, Stream, Whole
from data_plane.gateway.attempts import Attempts, Begun, Call, any_seed
from data_plane.gateway.demand import Demand
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.knowledge import Asked
from data_plane.gateway.metrics import Metrics
from data_plane.gateway.patience import Patience
from data_plane.gateway.settings import GatewaySettings
from data_plane.router import sse
from data_plane.router.runner_client import StreamLost, Upstream
from data_plane.router.table import RouteTable
from data_plane.wire.errors import ApiError, ErrorBody, ErrorEnvelope, invalid
from data_plane.wire.openai import ChatRequest, CompletionRequest, encode, parse_chat, parse_completion
from data_plane.wire.prefix_chain import chain_of
from data_plane.wire.routes import EndpointRoute


class Completions:
    """Serves the two inference routes."""

    def __init__(
        self,
        settings: GatewaySettings,
        table: RouteTable,
        attempts: Attempts,
        demand: Demand,
        admission: Admission,
        metrics: Metrics,
        is_cut: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._table = table
        self._attempts = attempts
        self._demand = demand
        self._admission = admission
        self._metrics = metrics
        self._is_cut = is_cut

    async def chat(self, exchange: Exchange, endpoint: str | None) -> Answer:
        """POST …/v1/chat/completions."""
        return await self._serve(exchange, endpoint, parse_chat, "/v1/chat/completions")

    async def complete(self, exchange: Exchange, endpoint: str | None) -> Answer:
        """POST …/v1/completions."""
        return await self._serve(exchange, endpoint, parse_completion, "/v1/completions")

    async def _serve(
        self,
        exchange: Exchange,
        endpoint: str | None,
        parse: Callable[[bytes], ChatRequest | CompletionRequest],
        path: str,
    ) -> Answer:
        route = named_endpoint(self._table, exchange, endpoint) if endpoint else None
        raw = await exchange.body(self._settings.most_body_bytes, self._settings.body_timeout_s)
        hold_s = exchange.hold_s(self._settings.hold.default_hold_s)
        parsed = parse(raw)
        route = endpoint_for(self._table, exchange, route, parsed.model)
        rank = self._admission.rank(exchange, parsed)
        # whose request it is says where it goes; a runner has no use for it
        sent = msgspec.structs.replace(
            parsed,
            model=route.name,
            priority=rank or None,
            user=None,
            prompt_cache_key=None,
            seed=any_seed() if parsed.seed is None else parsed.seed,
        )
        body = encode(sent)
        session = exchange.session or parsed.prompt_cache_key or parsed.user
        aim = Asked(chain_of(parsed, exchange.tenant), session)
        until = exchange.arrived + hold_s
        admission, demand = self._admission.enter(exchange, route, parsed, rank, len(body)), self._demand
        with admission as admitted, demand.working(route.id, exchange, admitted.meter):
            call = Call(exchange, route, path, sent, body, hold_s, until, int(time.time()), admitted, aim, parsed.seed)
            self._attempts.note_request(call)
            return await (self._stream(call) if parsed.stream else self._whole(call))

    async def _whole(self, call: Call) -> Answer:
        async with self._attempts.begun(call) as begun:
            body = begun.upstream.body
            if body is None:
                raise errors.upstream_failed(call.route.name, 1, "it streamed what was not asked to be a stream")
            return self._pass_on(call, begun.upstream, body)

    async def _stream(self, call: Call) -> Answer:
        """A stream, from one replica or from several, one after the other."""
        response: Stream | None = None
        while True:
            try:
                return await self._stream_on(call, response)
            except StreamLost as lost:
                response = call.exchange.response
                if response is None:
                    raise errors.upstream_failed(call.route.name, 1, str(lost)) from lost
                self._metrics.interrupted.add(call.route.name)
                if call.journal.is_complete:
                    return await _end_with(response, sse.DONE_EVENT)
                failure = await self._go_on(call, lost)
                if failure is not None:
                    call.exchange.outcome = "interrupted"
                    return await _end_with(response, _error_event(failure))
                self._metrics.resumed.add(call.route.name)

    async def _go_on(self, call: Call, lost: StreamLost) -> ErrorBody | None:
        try:
            return await self._attempts.go_on(call, lost)
        except asyncio.CancelledError:
            if not self._is_cut():
                raise
            return errors.shutting_down().body

    async def _stream_on(self, call: Call, response: Stream | None) -> Answer:
        """What one replica says of it. StreamLost where that is not all."""
        exchange = call.exchange
        failure: ApiError | None = None
        async with contextlib.AsyncExitStack() as stack:
            begun: Begun | None = None
            manners = self._settings.stream
            async with Patience(exchange, manners, lambda: self._progress(call), response) as patience:
                try:
                    begun = await stack.enter_async_context(self._attempts.begun(call))
                except ApiError as error:
                    failure = error
                except asyncio.CancelledError:
                    if not self._is_cut():
                        raise
                    failure = errors.shutting_down()
            response = patience.response
            if begun is None:
                assert failure is not None
                if response is None:
                    raise failure
                exchange.note_error(failure)
                return await _end_with(response, _error_event(failure.body))
            body = begun.upstream.body
            if body is not None:
                if response is None:
                    return self._pass_on(call, begun.upstream, body)
                return await _end_with(response, _error_event(self._note_upstream_error(call, body)))
            if response is None:
                response = exchange.stream()
            else:
                # its headers went out before there was this route to tell of
                await response.write(sse.comment(f"x-ebb-route: {exchange.headers.get('x-ebb-route', '')}"))
            exchange.response = response
            await self._relay(call, begun, response)
            return response

    async def _relay(self, call: Call, begun: Begun, response: Stream) -> None:
        upstream, watch = begun.upstream, begun.watch
        journal = call.journal if upstream.is_marked else None
        try:
            while events := await upstream.read_events():
                watch.signs += 1
                events = call.admitted.meter.relay(events)
                if journal is not None:
                    events = journal.take(events)
                if events:
                    await self._write(call, response, events)
        except asyncio.CancelledError:
            if not self._is_cut():
                raise
            call.exchange.outcome = "interrupted"
            await _end_with(response, _error_event(errors.shutting_down().body))
            return
        if upstream.failed:
            call.exchange.outcome = "error"
        # Many clients hang up on [DONE]: by then they have all of the answer, so that is no cancellation.
        with contextlib.suppress(ConnectionError):
            response.end()

    async def _write(self, call: Call, response: Stream, events: bytes) -> None:
        response.send(events)
        if not response.is_full:
            return  # a timer for each event would cost as much as passing it on
        client = call.exchange.request.client
        try:
            async with asyncio.timeout(self._settings.stream.stalled_s):
                await client.room()
        except TimeoutError:
            client.abort()
            raise ConnectionResetError("the client took nothing for too long") from None

    def _pass_on(self, call: Call, upstream: Upstream, body: bytes) -> Whole:
        if upstream.status >= 400:
            self._note_upstream_error(call, body)
        else:
            call.admitted.meter.whole(body)
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
        if route is None:
            return "waiting"
        wait_s = self._admission.wait_s(route.id)
        eta = "" if wait_s is None else f" eta={wait_s:.0f}"
        if route.replicas:
            return f"waiting in_line={self._admission.waiting(route.id)}{eta}"
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


async def _end_with(response: Stream, event: bytes) -> Stream:
    """The last event of a stream: what failed, and no [DONE], or just that where all the rest was sent."""
    await response.write(event)
    response.end()
    return response


def _error_event(error: ErrorBody) -> bytes:
    return sse.event(msgspec.json.encode(ErrorEnvelope(error)))
