"""What may be asked of an endpoint without waking it: models, health, and the tokenizer of a running replica."""

import asyncio
from typing import Any
from urllib.parse import unquote

import msgspec

from data_plane.gateway import errors
from data_plane.gateway.answers import Answer, Whole
from data_plane.gateway.attempts import MOST_TRIES
from data_plane.gateway.completions import endpoint_for, named_endpoint
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.settings import GatewaySettings
from data_plane.router.choose import Candidate, choose
from data_plane.router.lease import InFlight
from data_plane.router.runner_client import RunnerClient, RunnerUnusable
from data_plane.router.table import RouteTable
from data_plane.wire.errors import invalid
from data_plane.wire.openai import decode
from data_plane.wire.routes import EndpointRoute, ReplicaRoute

_OBJECT: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


class Listing:
    """Serves everything but completions. Nothing here wakes an endpoint or counts as work on it."""

    def __init__(
        self, settings: GatewaySettings, table: RouteTable, in_flight: InFlight, runners: RunnerClient
    ) -> None:
        self._settings = settings
        self._table = table
        self._in_flight = in_flight
        self._runners = runners

    async def models(self, exchange: Exchange, endpoint: str | None) -> Answer:
        """GET …/v1/models: all endpoints of the tenant, or the one in the URL, asleep ones too."""
        if endpoint is None:
            routes = self._table.of_tenant(exchange.tenant)
        else:
            routes = [named_endpoint(self._table, exchange, endpoint)]
        return _json(exchange, {"object": "list", "data": [_model(route) for route in routes]})

    async def model(self, exchange: Exchange, endpoint: str | None) -> Answer:
        """GET …/v1/models/{id}."""
        name = unquote(exchange.request.path.partition("/v1/models/")[2])
        route = named_endpoint(self._table, exchange, endpoint) if endpoint else None
        return _json(exchange, _model(endpoint_for(self._table, exchange, route, name)))

    async def health(self, exchange: Exchange, endpoint: str | None) -> Answer:
        """GET …/health: 200 for every endpoint that would be served, asleep or not; 503 for one that failed."""
        if endpoint is None:
            return _json(exchange, {"status": "ok"})
        route = named_endpoint(self._table, exchange, endpoint)
        if route.state == "failed" and not route.replicas:
            raise errors.model_failed(route.name, route.reason)
        return _json(exchange, {"status": "ok", "state": route.state, "ready": len(route.replicas)})

    async def tokenize(self, exchange: Exchange, endpoint: str | None) -> Answer:
        """POST …/tokenize."""
        return await self._post(exchange, endpoint, "/tokenize")

    async def detokenize(self, exchange: Exchange, endpoint: str | None) -> Answer:
        """POST …/detokenize."""
        return await self._post(exchange, endpoint, "/detokenize")

    async def tokenizer_info(self, exchange: Exchange, endpoint: str | None) -> Answer:
        """GET …/tokenizer_info; without an endpoint in the URL, of `?model=`."""
        route = named_endpoint(self._table, exchange, endpoint) if endpoint else None
        route = endpoint_for(self._table, exchange, route, exchange.request.query.get("model"))
        return await self._ask(exchange, route, "GET", "/tokenizer_info", None)

    async def _post(self, exchange: Exchange, endpoint: str | None, path: str) -> Answer:
        route = named_endpoint(self._table, exchange, endpoint) if endpoint else None
        raw = await exchange.body(self._settings.most_body_bytes, self._settings.body_timeout_s)
        fields = decode(raw, _OBJECT)
        model = fields.get("model")
        if model is not None and not isinstance(model, str):
            raise invalid("Invalid value for 'model': expected a text.", "model", "invalid_type")
        route = endpoint_for(self._table, exchange, route, model)
        return await self._ask(exchange, route, "POST", path, msgspec.json.encode({**fields, "model": route.name}))

    async def _ask(
        self, exchange: Exchange, route: EndpointRoute, method: str, path: str, body: bytes | None
    ) -> Answer:
        """One short question to any usable replica; another is asked where it is lost."""
        asked: set[str] = set()
        why = ""
        while len(asked) < MOST_TRIES:
            replica = self._pick(route, asked)
            if replica is None:
                break
            asked.add(replica.id)
            exchange.replica = replica.id
            try:
                upstream = await self._runners.open(replica, method, path, body, exchange.upstream_headers())
            except RunnerUnusable as error:
                why = str(error)
                continue
            upstream.close()
            if upstream.status >= 400:
                exchange.outcome = "client_error" if upstream.status < 500 else "error"
            return exchange.plain(upstream.status, upstream.body or b"", upstream.headers)
        if asked:
            raise errors.upstream_failed(route.name, len(asked), why)
        raise errors.endpoint_asleep(route)

    def _pick(self, route: EndpointRoute, asked: set[str]) -> ReplicaRoute | None:
        now = asyncio.get_running_loop().time()
        replicas = {one.id: one for one in self._table.usable(route.id, now) if one.id not in asked}
        choice = choose([Candidate(one.id, one.slots, self._in_flight.of_replica(one.id)) for one in replicas.values()])
        return replicas[choice.replica_id] if choice else None


def _model(route: EndpointRoute) -> dict[str, Any]:
    return {
        "id": route.name,
        "object": "model",
        "created": route.created,
        "owned_by": route.tenant,
        "root": route.model,
        "state": route.state,
        "max_model_len": route.max_model_len,
    }


def _json(exchange: Exchange, body: dict[str, Any]) -> Whole:
    return exchange.plain(200, msgspec.json.encode(body))
