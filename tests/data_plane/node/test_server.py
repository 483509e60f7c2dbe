"""The agent's own HTTP: who may ask for what, logs with follow, and the one error shape."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from yarl import URL

from data_plane.node.fleet import Fleet
from data_plane.node.launch import RunnerSettings
from data_plane.node.metrics import NodeMetrics
from data_plane.node.records import NodePaths
from data_plane.node.server import OPEN, Server
from data_plane.wire.keys import KeyRecord, Scope, new_key
from tests.fakes.node_agent import agent_here, desired, make_artifact
from tests.fakes.node_control import FakeControl


def key(*scopes: Scope, expires_at: float | None = None) -> tuple[str, KeyRecord]:
    shown, prefix, digest = new_key()
    return shown, KeyRecord(prefix, "t", prefix, digest, scopes, expires_at)


@pytest_asyncio.fixture
async def http() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


class NoDrain:
    async def drain(self, url: str, token: str) -> None:
        raise AssertionError("nothing is drained here")

    async def park(self, url: str, token: str) -> None:
        raise AssertionError("nothing is parked here")

    async def unpark(self, url: str, token: str) -> None:
        raise AssertionError("nothing is parked here")


async def test_every_route_but_the_open_ones_asks_for_a_key(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    paths = NodePaths(tmp_path)
    metrics = NodeMetrics()
    fleet = Fleet(paths, RunnerSettings(), NoDrain(), metrics)
    app = Server(fleet, paths, metrics, http, "token-of-the-agent", lambda: False).app()
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    assert len(routes) >= 8
    try:
        for method, path in [*sorted(routes), ("GET", "/nowhere"), ("POST", "/metrics")]:
            async with http.request(method, base + path.replace("{id}", "r1")) as answer:
                if path in OPEN:
                    assert answer.status == (200 if path == "/healthz" else 503)
                    continue
                assert answer.status == 401, path
                assert answer.headers["x-request-id"]
                if method != "HEAD":
                    assert (await answer.json())["error"]["code"] == "invalid_api_key"
    finally:
        await runner.cleanup()


async def test_scopes_request_ids_and_errors(home: Path, control: FakeControl, http: aiohttp.ClientSession) -> None:
    (reader, read_record), (infer, infer_record) = key("read"), key("infer")
    late, late_record = key("admin", expires_at=1.0)
    async with agent_here(home, control):
        await control.want(desired("r1", make_artifact(home)), keys=(read_record, infer_record, late_record))
        await control.until_phase("r1", "ready")
        base, token = control.registration.agent_url, control.registration.agent_token
        wanted = [(token, 200), (reader, 200), (infer, 403), (late, 401), ("", 401), ("nonsense", 401), ("ä.ö", 401)]
        for presented, status in wanted:
            async with http.get(base + "/metrics", headers=bearer(presented)) as answer:
                assert answer.status == status, presented
                text = await answer.text()
        async with http.get(base + "/metrics", headers=bearer(token) | {"x-request-id": "mine-1"}) as answer:
            text = await answer.text()
            assert answer.headers["x-request-id"] == "mine-1"
        assert 'ebb_node_replicas{phase="ready"} 1.0' in text
        assert "ebb_node_starts_total 1.0" in text and "ebb_node_start_seconds_count 1.0" in text
        assert "process_resident_memory_bytes" in text
        async with http.get(base + "/readyz") as answer:
            assert answer.status == 200
        async with http.get(base + "/replicas/r1/metrics", headers=bearer(reader)) as answer:
            assert (answer.status, await answer.text()) == (200, "fake_up 1\n")
        bad = {
            "/replicas/nobody/metrics": 404, "/replicas/nobody/logs": 404, "/nowhere": 404,
            "/replicas/..%2f..%2fetc/logs": 400, "/replicas/R1%00/logs": 400, "/replicas/a..b/logs": 400,
            "/replicas/r1/logs?tail=x": 400, "/replicas/r1/logs?tail=-1": 400, "/replicas/r1/logs?tail=99999": 400,
            "/replicas/r1/logs?follow=maybe": 400,
        }  # fmt: skip
        for path, status in bad.items():
            async with http.get(URL(base + path, encoded=True), headers=bearer(token)) as answer:
                assert answer.status == status, path
                assert (await answer.json())["error"]["message"]
        await control.want()
        await control.until(lambda report: not report.replicas)


async def test_logs_tail_and_follow_until_the_end(
    home: Path, control: FakeControl, http: aiohttp.ClientSession
) -> None:
    async with agent_here(home, control):
        await control.want(desired("r1", make_artifact(home)))
        await control.until_phase("r1", "ready")
        base, token = control.registration.agent_url, control.registration.agent_token
        path = home / "logs" / "replica-r1.log"
        with path.open("a") as file:
            file.write("one\ntwo\n")
        async with http.get(base + "/replicas/r1/logs?tail=1", headers=bearer(token)) as answer:
            assert await answer.text() == "two\n"
            assert answer.headers["content-type"].startswith("text/plain") and answer.headers["x-request-id"]
        async with http.get(base + "/replicas/r1/logs?tail=2&follow=1", headers=bearer(token)) as answer:
            assert await answer.content.readline() == b"one\n"
            assert await answer.content.readline() == b"two\n"
            with path.open("a") as file:
                file.write("three\n")
            async with asyncio.timeout(5):
                assert await answer.content.readline() == b"three\n"
            await control.want()
            async with asyncio.timeout(10):
                assert await answer.content.read() == b""
        async with http.get(base + "/replicas/r1/logs?tail=1", headers=bearer(token)) as answer:
            assert await answer.text() == "three\n", "a forgotten replica's log can still be read"


@pytest.mark.parametrize("leave", ["agent", "reader"])
async def test_a_follower_holds_nothing_up(
    home: Path, control: FakeControl, http: aiohttp.ClientSession, leave: str
) -> None:
    (home / "logs").mkdir()
    async with agent_here(home, control):
        await control.want(desired("r1", make_artifact(home)))
        await control.until_phase("r1", "ready")
        url = control.registration.agent_url + "/replicas/r1/logs?follow=1"
        answer = await http.get(url, headers=bearer(control.registration.agent_token))
        assert await answer.content.readline()
        if leave == "reader":
            answer.close()
        left_at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - left_at < 5
    answer.close()
