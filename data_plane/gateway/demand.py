"""What work there is on each endpoint, told to the control plane: at once when it begins or ends, else now and then.

Knows nothing of what the work is, nor what the autoscaler makes of it.
"""

import asyncio
from collections.abc import Callable

import structlog

from data_plane.gateway.control import Backoff, ControlClient, ControlUnavailable, NoSuchEndpoint
from data_plane.router.table import RouteTable
from data_plane.wire.routes import DemandReport, EndpointDemand

BUSY_EVERY_S = 1.0
IDLE_EVERY_S = 5.0
LEAST_GAP_S = 0.1
"""Between two reports: an endpoint that turns busy and idle a hundred times a second is told of ten times."""

_log = structlog.get_logger()


class Demand:
    """Requests in hand by endpoint, and when each endpoint's last one ended (seconds of the loop's clock)."""

    def __init__(self, started: float) -> None:
        self.turned = asyncio.Event()
        self._started = started
        self._in_hand: dict[str, int] = {}
        self._ended: dict[str, float] = {}

    def working(self, endpoint_id: str) -> "Work":
        """The body of this is work on the endpoint, held or running."""
        return Work(self, endpoint_id)

    def begin(self, endpoint_id: str) -> None:
        """One more request in hand."""
        count = self._in_hand.get(endpoint_id, 0)
        self._in_hand[endpoint_id] = count + 1
        if count == 0:
            self.turned.set()

    def end(self, endpoint_id: str) -> None:
        """One less."""
        left = self._in_hand[endpoint_id] - 1
        if left:
            self._in_hand[endpoint_id] = left
        else:
            del self._in_hand[endpoint_id]
            self._ended[endpoint_id] = asyncio.get_running_loop().time()
            self.turned.set()

    @property
    def busy(self) -> bool:
        """Whether any endpoint has work."""
        return bool(self._in_hand)

    @property
    def total(self) -> int:
        """All requests in hand."""
        return sum(self._in_hand.values())

    def of(self, endpoint_id: str, waiting: int, now: float) -> EndpointDemand:
        """The endpoint's demand. Where this gateway never saw work, it has been idle since the gateway started."""
        in_hand = self._in_hand.get(endpoint_id, 0)
        idle_for_s = 0.0 if in_hand else now - self._ended.get(endpoint_id, self._started)
        return EndpointDemand(endpoint_id, running=in_hand - waiting, waiting=waiting, idle_for_s=idle_for_s)

    def forget_all_but(self, endpoint_ids: set[str]) -> None:
        """Drop what is known of endpoints that are gone."""
        for gone in self._ended.keys() - endpoint_ids:
            del self._ended[gone]


class Work:
    """One request's part of the demand. A context manager of its own: contextlib's costs 4 us a request, this one 1."""

    __slots__ = ("_demand", "_endpoint_id")

    def __init__(self, demand: Demand, endpoint_id: str) -> None:
        self._demand = demand
        self._endpoint_id = endpoint_id

    def __enter__(self) -> None:
        self._demand.begin(self._endpoint_id)

    def __exit__(self, *_: object) -> None:
        self._demand.end(self._endpoint_id)


class DemandReporter:
    """The loop that sends the reports."""

    def __init__(
        self, name: str, demand: Demand, table: RouteTable, waiting: Callable[[str], int], control: ControlClient
    ) -> None:
        self._name = name
        self._demand = demand
        self._table = table
        self._waiting = waiting
        self._control = control

    def report(self) -> DemandReport:
        """Demand on every endpoint there is, now."""
        now = asyncio.get_running_loop().time()
        ids = [route.id for route in self._table.all()]
        self._demand.forget_all_but(set(ids))
        return DemandReport(self._name, tuple(self._demand.of(id, self._waiting(id), now) for id in ids))

    async def run(self) -> None:
        """Report until cancelled. While the control plane is away, only the latest report is worth sending."""
        backoff = Backoff()
        while True:
            self._demand.turned.clear()
            try:
                if self._table.received:
                    await self._control.report(self.report())
                backoff.reset()
            except (ControlUnavailable, NoSuchEndpoint) as error:
                pause_s = backoff.next_s()
                _log.warning("demand_not_reported", reason=str(error), retry_in_s=round(pause_s, 2))
                await asyncio.sleep(pause_s)
                continue
            await asyncio.sleep(LEAST_GAP_S)
            try:
                async with asyncio.timeout(BUSY_EVERY_S if self._demand.busy else IDLE_EVERY_S):
                    await self._demand.turned.wait()
            except TimeoutError:  # nothing turned: time for a heartbeat
                continue
