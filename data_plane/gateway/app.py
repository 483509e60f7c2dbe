"""One gateway, put together: the only file here that knows every part. Stateless but for what it was last sent."""

import asyncio
import sys
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
import structlog

from data_plane.gateway import errors
from data_plane.gateway.activation import Activation
from data_plane.gateway.admission import Admission
from data_plane.gateway.answers import Answer
from data_plane.gateway.attempts import Attempts
from data_plane.gateway.auth import Auth
from data_plane.gateway.completions import Completions
from data_plane.gateway.control import ControlClient
from data_plane.gateway.demand import Demand, DemandReporter
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.followers import Followers
from data_plane.gateway.knowledge import Knowledge
from data_plane.gateway.limits import Limiter
from data_plane.gateway.listing import Listing
from data_plane.gateway.metrics import EndpointGauges, Metrics
from data_plane.gateway.recent import MOST as MOST_RECENT
from data_plane.gateway.recent import RecentRequests, RequestRecord
from data_plane.gateway.request_log import RequestLog
from data_plane.gateway.server import GatewayServer, Route
from data_plane.gateway.settings import GatewaySettings
from data_plane.gateway.state import StateFollower
from data_plane.gateway.usage import UsageBook
from data_plane.gateway.vitals import Vitals
from data_plane.router.lease import InFlight
from data_plane.router.probe import probe
from data_plane.router.runner_client import RunnerClient
from data_plane.router.table import RouteTable
from data_plane.wire.errors import invalid
from data_plane.wire.routes import GatewayState, WakeAnswer, WakeRequest

_log = structlog.get_logger()


class Gateway:
    """`start`, then `stop`. The parts that tests look at are public."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Needs a running event loop."""
        self._settings = settings
        self.table = RouteTable()
        self.in_flight = InFlight()
        self.auth = Auth()
        self.limits = Limiter()
        self.demand = Demand()
        self._control = ControlClient(settings)
        self._runners = RunnerClient(settings.runner)
        self.knowledge = Knowledge(settings.route_policy)
        self.followers = Followers(self.table, self.knowledge, self._runners)
        self.recent = RecentRequests()
        self.activation = Activation(self.table, self.in_flight, self._wake, settings.hold, self.knowledge)
        self.metrics = Metrics(self._books)
        self.usage = UsageBook(lambda: self.metrics.usage_dropped.add())
        self.vitals = Vitals(
            self.table,
            lambda replica: probe(replica, settings.vitals.reach_s, settings.vitals.answer_s),
            lambda endpoint_id: self.activation.table_changed([endpoint_id]),
            settings.vitals,
        )
        self.attempts = Attempts(self.activation, self._runners, self.vitals, self.metrics, self._num_replicas)
        self._request_log = RequestLog(sys.stderr)
        self.server = GatewayServer(self._routes(), self.auth, lambda: self.table.received, self._on_end)
        self._reporter: DemandReporter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """The port it listens on, also where 0 was asked for."""
        return self.server.port

    async def start(self) -> None:
        """Listen, and follow the control plane. Raises OSError where the port is taken."""
        await self.server.listen(self._settings.host, self._settings.port)
        waiting = self.activation.waiting
        self._reporter = reporter = DemandReporter(
            self._settings.name, self.demand, self.usage, self.table, lambda id: waiting(id)[0], self._control
        )
        self._spawn(StateFollower(self._control, self._on_state).run(), "follow")
        self._spawn(reporter.run(), "report")
        _log.info("gateway_listening", host=self._settings.host, port=self.port, control=self._settings.control_url)

    async def stop(self) -> None:
        """Leave: refuse what is new, tell who waits, finish streams within the drain limit, cut off the rest."""
        self.server.leave()
        self.activation.close()
        await self.server.wait_idle(self._settings.drain_s)
        if self.server.running:
            _log.warning("drain_limit_passed", running=self.server.running, drain_s=self._settings.drain_s)
            self.server.cut_off()
            await self.server.wait_idle(1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._reporter is not None:
            await self._reporter.finish()
        await self.followers.close()
        await self.vitals.close()
        self.server.close()
        await self._runners.close()
        await self._control.close()
        self._request_log.flush()
        _log.info("gateway_stopped")

    def check(self) -> None:
        """All books balance; when idle, all are empty."""
        self.in_flight.check()
        self.activation.check()
        self.limits.check()

    def _spawn(self, loop: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(loop, name=name)
        task.add_done_callback(_died)
        self._tasks.append(task)

    def _routes(self) -> dict[str, Route]:
        completions = Completions(
            self._settings,
            self.table,
            self.attempts,
            self.demand,
            Admission(self.limits, self.activation),
            self.metrics,
            lambda: self.server.cut,
        )
        listing = Listing(self._settings, self.table, self.in_flight, self._runners)
        return {
            "/healthz": Route("GET", _alive, (), per_endpoint=False),
            "/readyz": Route("GET", self._ready, (), per_endpoint=False),
            "/metrics": Route("GET", self._metrics, ("read",), per_endpoint=False),
            "/routes/recent": Route("GET", self._recent, ("read",), per_endpoint=False),
            "/health": Route("GET", listing.health, ("infer", "read")),
            "/v1/chat/completions": Route("POST", completions.chat, ("infer",)),
            "/v1/completions": Route("POST", completions.complete, ("infer",)),
            "/v1/models": Route("GET", listing.models, ("infer", "read")),
            "/v1/models/{id}": Route("GET", listing.model, ("infer", "read")),
            "/tokenize": Route("POST", listing.tokenize, ("infer",)),
            "/detokenize": Route("POST", listing.detokenize, ("infer",)),
            "/tokenizer_info": Route("GET", listing.tokenizer_info, ("infer", "read")),
        }

    def _on_state(self, state: GatewayState) -> None:
        self.auth.update(state.keys)
        self.limits.update(state.keys, state.gateways)
        changed = self.table.update(state, asyncio.get_running_loop().time())
        self.followers.table_changed(changed)
        self.activation.table_changed(changed)
        self.attempts.budget.forget_all_but({route.id for route in state.endpoints})

    def _num_replicas(self, endpoint_id: str) -> int:
        route = self.table.get(endpoint_id)
        return len(route.replicas) if route else 0

    async def _wake(self, endpoint_id: str, request_id: str, waiting: int, again_s: float) -> WakeAnswer:
        request = WakeRequest(self._settings.name, request_id, waiting, again_s)
        return await self._control.wake(endpoint_id, request)

    async def _ready(self, exchange: Exchange, _endpoint: str | None) -> Answer:
        if self.server.leaving:
            raise errors.shutting_down()
        if not self.table.received:
            raise errors.not_ready()
        return exchange.plain(200, b'{"status":"ready"}')

    async def _metrics(self, exchange: Exchange, _endpoint: str | None) -> Answer:
        return exchange.plain(200, self.metrics.render(), {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _recent(self, exchange: Exchange, _endpoint: str | None) -> Answer:
        """The key's tenant's last requests: `?endpoint=` only of one, `?limit=` how many."""
        query = exchange.request.query
        limit = query.get("limit", "50")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MOST_RECENT):
            raise invalid(f"'limit' must be a number from 1 to {MOST_RECENT}, not {limit[:40]!r}.", "limit")
        records = self.recent.of(exchange.tenant, query.get("endpoint"), int(limit))
        return exchange.plain(200, msgspec.json.encode({"items": records}))

    def _books(self) -> list[EndpointGauges]:
        rows: list[EndpointGauges] = []
        for route in self.table.all():
            depth, waiting_bytes = self.activation.waiting(route.id)
            running = self.in_flight.of_endpoint(route.id)
            rows.append(EndpointGauges(route.name, running, depth, waiting_bytes, len(route.replicas)))
        return rows

    def _on_end(self, exchange: Exchange) -> None:
        """Count and log a request: who, where, how long, how it ended; never what was said."""
        if exchange.route in ("/healthz", "/readyz", "/metrics", "/routes/recent"):
            return
        seconds = asyncio.get_running_loop().time() - exchange.arrived
        self._measure(exchange, seconds)
        self._record(exchange, seconds)
        self._request_log.note(exchange, seconds)

    def _record(self, exchange: Exchange, seconds: float) -> None:
        if not (exchange.endpoint and exchange.route in ("/v1/chat/completions", "/v1/completions")):
            return
        lease = exchange.lease
        if lease is not None:
            metrics = self.metrics
            metrics.routes.add(exchange.endpoint, lease.reason)
            metrics.prompt_tokens.add(exchange.endpoint, amount=lease.prompt_tokens)
            metrics.matched_tokens.add(exchange.endpoint, amount=lease.matched_tokens)
        at = time.time() - seconds
        route = self.table.find(exchange.tenant, exchange.endpoint)
        if route is not None:
            self.usage.note(exchange, route.id, at, seconds)
        record = RequestRecord(
            at,
            exchange.request_id,
            exchange.endpoint,
            exchange.replica,
            lease.reason if lease else "",
            lease.matched_tokens if lease else 0,
            lease.prompt_tokens if lease else 0,
            exchange.first_byte_s,
            exchange.status,
            exchange.outcome,
        )
        self.recent.add(exchange.tenant, record)

    def _measure(self, exchange: Exchange, seconds: float) -> None:
        metrics, endpoint = self.metrics, exchange.endpoint
        metrics.requests.add(exchange.model, endpoint, str(exchange.status), exchange.outcome)
        if exchange.outcome == "cancelled":
            metrics.cancellations.add("running" if exchange.replica else "waiting")
        if exchange.reason and not exchange.replica:
            metrics.rejections.add(exchange.reason)
        if not endpoint:
            return
        metrics.request_seconds.observe(endpoint, seconds)
        if exchange.first_byte_s is not None:
            metrics.first_byte_seconds.observe(endpoint, exchange.first_byte_s)
        if exchange.held_s is not None:
            metrics.queue_wait_seconds.observe(endpoint, exchange.held_s)
        if exchange.held_s is not None and exchange.is_cold:
            metrics.cold_starts.add(endpoint, exchange.outcome)
            if exchange.first_byte_s is not None:
                metrics.cold_start_seconds.observe(endpoint, exchange.first_byte_s)


async def _alive(exchange: Exchange, _endpoint: str | None) -> Answer:
    return exchange.plain(200, b'{"status":"ok"}')


def _died(task: "asyncio.Task[None]") -> None:
    """A loop that ends by an error of ours would be missed only much later: say so, and end the process."""
    if task.cancelled() or task.exception() is None:
        return
    _log.critical("loop_died", loop=task.get_name(), exc_info=task.exception())
    asyncio.get_running_loop().call_soon(_raise_exit)


def _raise_exit() -> None:
    raise SystemExit(1)
