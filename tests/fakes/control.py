"""A control plane that only knows gateways: their internal API over a real socket, from a state that tests set."""

import asyncio
import hashlib
from collections.abc import Callable

import msgspec
from aiohttp import web

from data_plane.wire.keys import NO_LIMITS, KeyLimits, KeyRecord, Priority, Scope, new_key
from data_plane.wire.routes import DemandReport, EndpointRoute, GatewayState, WakeAnswer, WakeRequest

NODE_KEY = "ebb_node.secret"


class FakeControl:
    """Change `endpoints` and `keys` by the methods; every change wakes the long polls."""

    def __init__(self) -> None:
        self.endpoints: dict[str, EndpointRoute] = {}
        self.keys: list[KeyRecord] = []
        self.gateways = 1
        self.wakes: list[tuple[str, WakeRequest]] = []
        self.demand: list[DemandReport] = []
        self.on_wake: Callable[[str], None] = lambda _endpoint_id: None
        self.wake_delay_s = 0.0
        self.wakes_in_flight = 0
        self.most_wakes_in_flight = 0
        self._changed = asyncio.Event()
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> "FakeControl":
        """Listen; on the same port as before where it was stopped."""
        app = web.Application()
        app.router.add_get("/internal/v1/gateway/state", self._state)
        app.router.add_post("/internal/v1/gateway/demand", self._demand)
        app.router.add_post("/internal/v1/endpoints/{id}/wake", self._wake)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = int(self._runner.addresses[0][1])
        return self

    async def stop(self) -> None:
        """Go away, as a killed process does; `start` brings it back."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            self._announce()
            await runner.cleanup()

    def add_key(
        self,
        *scopes: Scope,
        tenant: str = "default",
        expires_at: float | None = None,
        priority: Priority = "normal",
        limits: KeyLimits = NO_LIMITS,
    ) -> str:
        """A new key of the tenant; returns what its holder sends."""
        shown, prefix, secret_sha256 = new_key()
        self.keys.append(KeyRecord(prefix, tenant, prefix, secret_sha256, scopes, expires_at, priority, limits))
        self._announce()
        return shown

    def put(self, route: EndpointRoute) -> EndpointRoute:
        """Create or replace an endpoint's route."""
        self.endpoints[route.id] = route
        self._announce()
        return route

    def change(self, endpoint_id: str, **fields: object) -> EndpointRoute:
        """Change some fields of an endpoint's route."""
        return self.put(msgspec.structs.replace(self.endpoints[endpoint_id], **fields))

    def remove(self, endpoint_id: str) -> None:
        """Delete an endpoint."""
        del self.endpoints[endpoint_id]
        self._announce()

    def state(self) -> GatewayState:
        content = (tuple(self.endpoints.values()), tuple(self.keys), self.gateways)
        version = hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:16]
        return GatewayState(version, *content)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _state(self, request: web.Request) -> web.Response:
        _check_key(request)
        deadline = asyncio.get_running_loop().time() + float(request.query["wait"])
        while (state := self.state()).version == request.query["version"] and self._runner is not None:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                break
        return web.Response(body=msgspec.json.encode(state), content_type="application/json")

    async def _demand(self, request: web.Request) -> web.Response:
        _check_key(request)
        self.demand.append(msgspec.json.decode(await request.read(), type=DemandReport))
        return web.Response(status=204)

    async def _wake(self, request: web.Request) -> web.Response:
        _check_key(request)
        endpoint_id = request.match_info["id"]
        self.wakes.append((endpoint_id, msgspec.json.decode(await request.read(), type=WakeRequest)))
        self.wakes_in_flight += 1
        self.most_wakes_in_flight = max(self.most_wakes_in_flight, self.wakes_in_flight)
        try:
            await asyncio.sleep(self.wake_delay_s)
        finally:
            self.wakes_in_flight -= 1
        if endpoint_id not in self.endpoints:
            return web.Response(status=404, body=b'{"error":{"message":"There is no such endpoint."}}')
        self.on_wake(endpoint_id)
        route = self.endpoints[endpoint_id]
        answer = WakeAnswer(route.state, route.phase, route.reason)
        return web.Response(body=msgspec.json.encode(answer), status=202, content_type="application/json")


def _check_key(request: web.Request) -> None:
    if request.headers.get("Authorization") != f"Bearer {NODE_KEY}":
        raise web.HTTPUnauthorized
