"""A stand-in for the control plane as a node agent sees it: registration, desired state by long poll, reports."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from data_plane.wire.fleet import (
    DesiredReplica,
    DesiredState,
    NodeRegistration,
    NodeReport,
    NodeWelcome,
    ObservedReplica,
    Peer,
)
from data_plane.wire.keys import KeyRecord

NODE_KEY = "ebb_0123456789ab.test-secret-of-the-node"


class FakeControl:
    """Keeps every report; tests set the desired state and wait for what the agent says."""

    def __init__(self) -> None:
        self.registrations: list[NodeRegistration] = []
        self.reports: list[NodeReport] = []
        self.calls: list[str] = []
        self.url = ""
        self.epoch = 0
        self.forget_node = False
        self.peers: tuple[Peer, ...] = ()
        self.lease_s = 0.0
        self.take_back = False
        """Whether it names again, as a control plane whose database forgot them does, what an agent says it runs."""
        self._desired = DesiredState("0", (), ())
        self._news = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    @property
    def registration(self) -> NodeRegistration:
        return self.registrations[-1]

    async def start(self, port: int = 0) -> None:
        app = web.Application(middlewares=[self._authorise])
        app.router.add_post("/internal/v1/nodes/register", self._register)
        app.router.add_get("/internal/v1/nodes/{node}/desired", self._serve_desired)
        app.router.add_post("/internal/v1/nodes/{node}/report", self._take_report)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Goes away; `start(port)` brings it back."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def want(self, *replicas: DesiredReplica, keys: tuple[KeyRecord, ...] = ()) -> None:
        async with self._news:
            self._desired = DesiredState(str(int(self._desired.version) + 1), replicas, keys, self.peers, self.lease_s)
            self._news.notify_all()

    async def until(self, said: Callable[[NodeReport], bool], timeout_s: float = 15.0) -> NodeReport:
        """The first report from now on, or the last one so far, of which `said` is true."""
        seen = max(0, len(self.reports) - 1)
        async with asyncio.timeout(timeout_s):
            while True:
                for report in self.reports[seen:]:
                    if said(report):
                        return report
                seen = len(self.reports)
                async with self._news:
                    if len(self.reports) == seen:
                        await self._news.wait()

    async def until_phase(self, replica_id: str, *phases: str, timeout_s: float = 15.0) -> ObservedReplica:
        """Waits until a replica is reported in one of `phases`."""

        def there(report: NodeReport) -> bool:
            return any(replica.id == replica_id and replica.phase in phases for replica in report.replicas)

        report = await self.until(there, timeout_s)
        return next(replica for replica in report.replicas if replica.id == replica_id)

    def phases(self, replica_id: str) -> list[str]:
        """All phases of a replica in the order in which they were reported, repetitions left out."""
        told: list[str] = []
        for report in self.reports:
            for replica in report.replicas:
                if replica.id == replica_id and (not told or told[-1] != replica.phase):
                    told.append(replica.phase)
        return told

    @web.middleware
    async def _authorise(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {NODE_KEY}":
            return web.Response(status=401)
        self.calls.append(request.path.rpartition("/")[2])
        return await handler(request)

    async def _register(self, request: web.Request) -> web.Response:
        self.registrations.append(msgspec.json.decode(await request.read(), type=NodeRegistration))
        self.epoch += 1
        self.forget_node = False
        return _json(NodeWelcome("node-1", self.epoch))

    async def _serve_desired(self, request: web.Request) -> web.Response:
        if self.forget_node:
            return web.Response(status=404)
        version, deadline = request.query["version"], time.monotonic() + float(request.query["wait"])
        async with self._news:
            while self._desired.version == version and (left := deadline - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self._news.wait(), left)
                except TimeoutError:
                    break  # nothing new: the same state is the answer
            return _json(self._desired)

    async def _take_report(self, request: web.Request) -> web.Response:
        report = msgspec.json.decode(await request.read(), type=NodeReport)
        if self.forget_node:
            return web.Response(status=404)
        if report.epoch != self.epoch:
            return web.Response(status=409)
        async with self._news:
            self.reports.append(report)
            named = {replica.id for replica in self._desired.replicas}
            lost = tuple(one.wanted for one in report.replicas if one.wanted is not None and one.id not in named)
            if self.take_back and lost:
                replicas = (*self._desired.replicas, *lost)
                self._desired = DesiredState(str(int(self._desired.version) + 1), replicas, self._desired.keys)
            self._news.notify_all()
        return web.Response(status=204)


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
