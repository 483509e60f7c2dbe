"""What work there is on each endpoint, told to the control plane: soon when it begins or ends, else now and then.
What did not change is not told again, so that hundreds of endpoints that sleep cost nothing.

Knows nothing of what the work is, nor what the autoscaler makes of it.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from data_plane.gateway.control import Backoff, ControlClient, ControlUnavailable, NoSuchEndpoint
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.meter import Meter
from data_plane.gateway.tally import Tally, Work
from data_plane.gateway.usage import UsageBook
from data_plane.router.table import RouteTable
from data_plane.wire.routes import DemandReport, EndpointDemand

BUSY_EVERY_S = 1.0
IDLE_EVERY_S = 5.0
LAST_S = 1.0
"""So long a gateway that ends tries to tell of its last requests."""
LEAST_GAP_S = 0.1
"""Between two reports: an endpoint that turns busy and idle a hundred times a second is told of ten times."""

_log = structlog.get_logger()


class Demand:
    """Requests in hand by endpoint, what they come to, and when each endpoint's last one ended."""

    def __init__(self) -> None:
        self.turned = asyncio.Event()
        self._tallies: dict[str, Tally] = {}
        self._ended: set[str] = set()
        """Whose work ended since that was last told."""

    def working(self, endpoint_id: str, exchange: Exchange | None = None, meter: Meter | None = None) -> Work:
        """The body of this is work on the endpoint, held or running."""
        return Work(self, endpoint_id, exchange, meter)

    def begin(self, work: Work) -> None:
        """One more request in hand."""
        now = asyncio.get_running_loop().time()
        tally = self._tallies.get(work.endpoint_id)
        if tally is None:
            tally = self._tallies[work.endpoint_id] = Tally(now)
        tally.begin(work, now)
        if tally.in_hand == 1:
            self.turned.set()

    def end(self, work: Work) -> None:
        """One less."""
        tally = self._tallies[work.endpoint_id]
        tally.end(work, asyncio.get_running_loop().time())
        if not tally.in_hand:
            self._ended.add(work.endpoint_id)
            self.turned.set()

    @property
    def busy(self) -> bool:
        """Whether any endpoint has work."""
        return any(tally.in_hand for tally in self._tallies.values())

    @property
    def total(self) -> int:
        """All requests in hand."""
        return sum(tally.in_hand for tally in self._tallies.values())

    def news(self, *, whole: bool) -> list[str]:
        """Endpoints that have work, and those whose work ended since this was last asked. `whole`: all that had any."""
        ended, self._ended = self._ended, set()
        return [id for id, tally in self._tallies.items() if whole or tally.in_hand or id in ended]

    def of(self, endpoint_id: str, waiting: int, now: float) -> EndpointDemand:
        """The endpoint's demand. Where this gateway never saw work of it, it has nothing to say of its idle time."""
        tally = self._tallies.get(endpoint_id)
        if tally is None:
            return EndpointDemand(endpoint_id, 0, 0, None)
        return tally.demand(endpoint_id, waiting, now)

    def forget_all_but(self, endpoint_ids: set[str]) -> None:
        """Drop what is known of endpoints that are gone and have no work left."""
        for gone in self._tallies.keys() - endpoint_ids:
            if not self._tallies[gone].in_hand:
                del self._tallies[gone]


class DemandReporter:
    """The loop that sends the reports."""

    def __init__(
        self,
        name: str,
        demand: Demand,
        usage: UsageBook,
        table: RouteTable,
        waiting: Callable[[str], int],
        control: ControlClient,
    ) -> None:
        self._name = name
        self._demand = demand
        self._usage = usage
        self._table = table
        self._waiting = waiting
        self._control = control
        self._is_whole = True

    def report(self, *, is_last: bool = False) -> DemandReport:
        """What is new of demand, now; after a report that was lost, all of it. The last one has all usage, too."""
        now = asyncio.get_running_loop().time()
        there = {route.id for route in self._table.all()}
        self._demand.forget_all_but(there)
        ids = [id for id in self._demand.news(whole=self._is_whole) if id in there]
        told = tuple(self._demand.of(id, self._waiting(id), now) for id in ids)
        return DemandReport(self._name, told, self._is_whole, self._usage.due(time.time(), all=is_last))

    async def finish(self) -> None:
        """Tell what is left to tell, where that is soon done; when `run` has ended."""
        try:
            async with asyncio.timeout(LAST_S):
                if (last := self.report(is_last=True)).usage is not None:
                    await self._send(last)
        except (ControlUnavailable, NoSuchEndpoint, TimeoutError) as error:
            _log.warning("usage_lost", reason=str(error) or type(error).__name__)

    async def _send(self, report: DemandReport) -> None:
        await self._control.report(report)
        self._is_whole = False
        if report.usage is not None:
            self._usage.arrived(report.usage)

    async def run(self) -> None:
        """Report until cancelled. While the control plane is away, only the latest report is worth sending."""
        backoff = Backoff()
        while True:
            self._demand.turned.clear()
            try:
                if self._table.received:
                    await self._send(self.report())
                backoff.reset()
            except (ControlUnavailable, NoSuchEndpoint) as error:
                self._is_whole = True
                pause_s = backoff.next_s()
                _log.warning("demand_not_reported", reason=str(error), retry_in_s=round(pause_s, 2))
                await asyncio.sleep(pause_s)
                continue
            try:
                async with asyncio.timeout(BUSY_EVERY_S if self._demand.busy else IDLE_EVERY_S):
                    await self._demand.turned.wait()
            except TimeoutError:  # nothing turned: time for a heartbeat
                continue
            # not before: the request that turned it may be waking its endpoint, and that goes first
            await asyncio.sleep(LEAST_GAP_S)
