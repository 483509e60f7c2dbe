"""The line of a request in the log: valid JSON whatever stands in it, shaped as all others, not lost at the end."""

import asyncio
import io
import json
from typing import Any, cast

import pytest

from data_plane.gateway import request_log
from data_plane.gateway.demand import Demand, DemandReporter
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.request_log import RequestLog
from data_plane.gateway.usage import UsageBook
from data_plane.router.table import RouteTable
from data_plane.wire.routes import DemandReport, EndpointRoute, GatewayState


def ended(**fields: Any) -> Exchange:
    exchange = Exchange(cast(Any, None), "id-1", 0.0)
    for name, value in fields.items():
        setattr(exchange, name, value)
    return exchange


async def test_lines_are_json_in_the_order_of_their_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "FLUSH_EVERY_S", 0.01)
    written = io.StringIO()
    log = RequestLog(written)
    log.note(ended(endpoint='a"b\\\n', route="/v1/ä", status=200, tries=1, held_s=0.5, replica="r"), 1.25)
    log.note(ended(status=499, outcome="cancelled", code="x"), 0.0)
    assert written.getvalue() == "", "lines are written together"
    await asyncio.sleep(0.05)
    first, second = (json.loads(line) for line in written.getvalue().splitlines())
    assert first.pop("at").endswith("Z") and second["outcome"] == "cancelled"
    assert first == {
        **{"request_id": "id-1", "route": "/v1/ä", "endpoint": 'a"b\\\n', "replica": "r"},
        **{"chosen": "", "matched_tokens": 0, "status": 200},
        **{"outcome": "ok", "code": "", "tries": 1, "held_ms": 500, "ms": 1250},
        **{"event": "request", "process": "gateway", "level": "info"},
    }
    log.note(ended(), 0.0)
    log.flush()
    assert len(written.getvalue().splitlines()) == 3, "what waits is written at the end"


async def test_an_endpoint_that_turns_often_is_told_of_now_and_then() -> None:
    reports: list[DemandReport] = []

    class Control:
        async def report(self, report: DemandReport) -> None:
            reports.append(report)

    table, demand = RouteTable(), Demand()
    table.update(GatewayState("1", (EndpointRoute("e", "t", "chat", "m", "live", 0, 1),), ()), 0.0)
    reporter = DemandReporter("g", demand, UsageBook(lambda: None), table, lambda _id: 0, cast(Any, Control()))
    loop = asyncio.create_task(reporter.run())
    for _ in range(100):
        with demand.working("e"):
            await asyncio.sleep(0.002)
    assert 1 <= len(reports) <= 25, "it was reported at each turn"
    with demand.working("e"):
        async with asyncio.timeout(5):
            while not reports[-1].endpoints[0].running:  # noqa: ASYNC110 - nothing announces a report
                await asyncio.sleep(0.01)
    loop.cancel()
