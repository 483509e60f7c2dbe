"""The least control plane that a gateway serves from: one state for ever, demand taken, nothing woken.

Knows nothing of databases, replicas or why anyone measures.
"""

import asyncio
import secrets

import msgspec
from aiohttp import web

from data_plane.bench.gateway.stub import MODEL
from data_plane.wire.keys import KeyRecord, new_key
from data_plane.wire.routes import EndpointRoute, GatewayState, ReplicaRoute, WakeAnswer

SLOTS = 4096
"""Of each stub replica: it never has too many requests."""


class Feeder:
    """Start it inside a loop; `url` and `node_key` are what a gateway is started with, `key` is what clients send."""

    def __init__(self, replica_urls: list[str]) -> None:
        self.node_key = "ebb_bench." + secrets.token_urlsafe(16)
        self.key, prefix, digest = new_key()
        token = secrets.token_urlsafe(16)
        replicas = tuple(ReplicaRoute(f"stub-{at}", url, token, SLOTS) for at, url in enumerate(replica_urls))
        route = EndpointRoute("bench-endpoint", "bench", MODEL, MODEL, "live", 1_700_000_000, 8192, replicas)
        keys = (KeyRecord(prefix, "bench", prefix, digest, ("infer", "read")),)
        self._state = GatewayState("1", (route,), keys)
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        assert self._runner is not None
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def start(self) -> None:
        """Listen on a free port of this machine only."""
        app = web.Application()
        app.router.add_get("/internal/v1/gateway/state", self._poll)
        app.router.add_post("/internal/v1/gateway/demand", _demand)
        app.router.add_post("/internal/v1/endpoints/{id}/wake", _wake)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def stop(self) -> None:
        """Close all connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _poll(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.node_key}":
            return web.Response(status=401)
        if request.query.get("version") == self._state.version:
            await asyncio.sleep(float(request.query.get("wait", "20")))
        return web.Response(body=msgspec.json.encode(self._state), content_type="application/json")


async def _demand(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=204)


async def _wake(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=msgspec.json.encode(WakeAnswer("live")), status=202, content_type="application/json")
