"""Events: in the order of commits, listed with filters, streamed and resumed."""

import asyncio
import json
import threading
import time
from collections.abc import Generator
from typing import Any
from uuid import UUID

import httpx
import pytest
import uvicorn
from litestar import Litestar
from litestar.testing import AsyncTestClient

from control_plane.db.session import Database
from control_plane.events.service import list_events, record

Client = AsyncTestClient[Litestar]


async def _write(database: Database, tenant_id: UUID, *subjects: str) -> None:
    for subject in subjects:
        async with database.transaction() as session:
            await record(session, tenant_id, "model", subject, "ready", f"{subject}\nis ready", {"n": 1})


async def test_lists_filter_and_page(client: Client, database: Database, tenant_id: UUID) -> None:
    await _write(database, tenant_id, "a", "b", "a", "c")
    items = (await client.get("/api/v1/events", params={"subject": "a"})).json()["items"]
    assert [item["subject"] for item in items] == ["a", "a"] and items[0]["data"] == {"n": 1}
    newest = (await client.get("/api/v1/events", params={"limit": 2})).json()["items"]
    assert [item["subject"] for item in newest] == ["a", "c"]
    after = (await client.get("/api/v1/events", params={"after": items[0]["id"], "limit": 2})).json()["items"]
    assert [item["subject"] for item in after] == ["b", "a"]


@pytest.mark.parametrize("params", [{"limit": "0"}, {"limit": "x"}, {"after": "-1"}, {"after": str(2**70)}])
async def test_bad_filters_are_refused(client: Client, params: dict[str, str]) -> None:
    answer = await client.get("/api/v1/events", params=params)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == next(iter(params))


async def test_a_rolled_back_transaction_leaves_no_event(database: Database, tenant_id: UUID) -> None:
    with pytest.raises(RuntimeError):
        async with database.transaction() as session:
            await record(session, tenant_id, "model", "x", "ready", "never")
            raise RuntimeError
    async with database.transaction() as session:
        assert await list_events(session, tenant_id, limit=10) == []


async def test_a_reader_that_saw_an_id_has_seen_all_before_it(database: Database, tenant_id: UUID) -> None:
    """Writers race; a reader that polls by the last id misses none."""

    async def write(writer: int) -> None:
        for n in range(15):
            async with database.transaction() as session:
                await record(session, tenant_id, "model", f"{writer}-{n}", "ready", "")
                await asyncio.sleep(0.001 * (writer % 3))

    seen: list[str] = []
    last = 0
    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    async with asyncio.timeout(30):
        while len(seen) < 60:
            async with database.transaction() as session:
                rows = await list_events(session, tenant_id, limit=500, after=last)
            seen += [row.subject for row in rows]
            last = rows[-1].id if rows else last
            await asyncio.sleep(0)
    await asyncio.gather(*writers)
    assert len(set(seen)) == 60


@pytest.fixture
def served(app: Litestar) -> Generator[str]:
    """The application on a real socket: streams need one."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    app.state.bells.hush()
    server.should_exit = True
    thread.join()


async def _next(lines: Any) -> dict[str, Any]:
    event: dict[str, Any] = {}
    async for line in lines:
        if line == "" and "id" in event:
            return event
        name, _, value = line.partition(": ")
        if name == "data":
            event["data"] = json.loads(value)
        elif name in ("id", "event"):
            event[name] = value
    raise AssertionError("the stream ended")


async def test_a_stream_follows_and_resumes(served: str, keys: Any, database: Database, tenant_id: UUID) -> None:
    await _write(database, tenant_id, "a", "b")
    headers = keys.headers(keys.read) | {"accept": "text/event-stream"}
    async with httpx.AsyncClient(base_url=served, headers=headers, timeout=20) as client:
        async with client.stream("GET", "/api/v1/events", params={"limit": 1}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["x-request-id"]
            lines = stream.aiter_lines()
            first = await _next(lines)
            assert first["event"] == "model.ready" and first["data"]["subject"] == "b"
            await _write(database, tenant_id, "c")
            started = time.monotonic()
            second = await _next(lines)
            assert second["data"]["subject"] == "c" and time.monotonic() - started < 2
        await _write(database, tenant_id, "d", "e")
        resumed = {"last-event-id": first["id"]}
        async with client.stream("GET", "/api/v1/events", headers=resumed) as stream:
            lines = stream.aiter_lines()
            assert [(await _next(lines))["data"]["subject"] for _ in range(3)] == ["c", "d", "e"]
        assert (await client.get("/api/v1/events", headers={"last-event-id": "x"})).status_code == 400
