"""The process itself: it starts by its command line, drains on SIGTERM, and costs nothing while idle."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import psutil
import pytest

from data_plane.gateway.settings import GatewaySettings
from tests.fakes.control import NODE_KEY, FakeControl
from tests.fakes.runner import FakeRunner

from .world import SETTINGS, World, chat, eventually


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(control: FakeControl, *extra: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str]]:
    """A real gateway process that is ready; killed afterwards if it is still there."""
    port = free_port()
    command = [sys.executable, "-m", "data_plane.gateway", "--control", control.url, "--port", str(port), *extra]
    environment = {**os.environ, "EBB_NODE_KEY": NODE_KEY}
    started = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as client, asyncio.timeout(20):
            while not await ready(client, url):  # noqa: ASYNC110 - another process announces nothing
                await asyncio.sleep(0.05)
        yield started, url
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def ready(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(url + "/readyz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def post(client: aiohttp.ClientSession, url: str, key: str, name: str, stream: bool) -> tuple[int, str]:
    body = chat(stream=stream, model=name)
    headers = {"Authorization": f"Bearer {key}"}
    async with client.post(f"{url}/e/{name}/v1/chat/completions", json=body, headers=headers) as response:
        return response.status, await response.text()


async def test_sigterm_finishes_streams_and_refuses_the_held(world: World) -> None:
    runner: FakeRunner = await world.runner()
    runner.behaviour.events, runner.behaviour.event_every_s = 20, 0.05
    await world.live(runner)
    world.endpoint("asleep")
    async with process(world.control) as (gateway, url), aiohttp.ClientSession() as client:
        stream = asyncio.create_task(post(client, url, world.key, "chat", stream=True))
        held = asyncio.create_task(post(client, url, world.key, "asleep", stream=False))
        await runner.until_running(1)
        await eventually(lambda: len(world.control.wakes) >= 1)
        gateway.send_signal(signal.SIGTERM)
        status, text = await held
        assert (status, '"code":"shutting_down"' in text) == (503, True)
        status, text = await stream
        assert (status, text.count("data: "), text.endswith("data: [DONE]\n\n")) == (200, 21, True)
        async with asyncio.timeout(10):
            assert await gateway.wait() == 0


async def test_drain_limit_ends_streams_with_an_error(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.events, runner.behaviour.event_every_s = 10_000, 0.05
    await world.live(runner)
    async with process(world.control, "--drain", "0.3") as (gateway, url), aiohttp.ClientSession() as client:
        stream = asyncio.create_task(post(client, url, world.key, "chat", stream=True))
        await runner.until_running(1)
        gateway.send_signal(signal.SIGTERM)
        _, text = await stream
        assert '"code":"shutting_down"' in text.split("data: ")[-1]
        assert "[DONE]" not in text
        async with asyncio.timeout(10):
            assert await gateway.wait() == 0
        await runner.until_running(0)


async def test_idle_costs_nothing_and_logs_hold_no_content(world: World) -> None:
    runner = await world.runner()
    await world.live(runner)
    async with process(world.control) as (gateway, url), aiohttp.ClientSession() as client:
        body = {**chat(), "messages": [{"role": "user", "content": "canary-prompt"}]}
        headers = {"Authorization": f"Bearer {world.key}", "x-request-id": "find-me"}
        async with client.post(url + "/v1/chat/completions", json=body, headers=headers) as response:
            assert response.status == 200
        await asyncio.sleep(0.5)
        watched = psutil.Process(gateway.pid)
        before = sum(watched.cpu_times()[:2])
        await asyncio.sleep(2)
        assert sum(watched.cpu_times()[:2]) - before <= 0.04
        gateway.terminate()
        _, log = await gateway.communicate()
        assert b'"request_id": "find-me"' in log
        for secret in (b"canary-prompt", b"tok tok", world.key.encode(), NODE_KEY.encode(), b"launch-token"):
            assert secret not in log


async def test_clear_refusals_at_the_start(world: World) -> None:
    async def run(*arguments: str, key: str = NODE_KEY) -> tuple[int | None, str]:
        started = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "data_plane.gateway", *arguments),
            env={**os.environ, "EBB_NODE_KEY": key},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            _, said = await started.communicate()
        return started.returncode, said.decode()

    status, said = await run("--control", world.control.url, "--port", str(world.gateway.port))
    assert (status, f"cannot listen on 127.0.0.1:{world.gateway.port}" in said) == (1, True)
    assert "Traceback" not in said
    status, said = await run("--control", world.control.url, key="")
    assert (status, "EBB_NODE_KEY is not set" in said) == (2, True)


async def test_metrics(world: World) -> None:
    runner = await world.runner()
    await world.live(runner)
    world.endpoint("asleep")
    reader = world.control.add_key("read")
    await world.known()
    async with world.post() as response:
        await response.read()
    async with world.post("/e/no-such/v1/chat/completions") as response:
        assert response.status == 404
    held: Any = asyncio.create_task(world.post("/e/asleep/v1/completions", {"prompt": "x"}).__aenter__())
    await eventually(lambda: world.gateway.activation.waiting("id-asleep")[0] == 1)
    async with world.get("/metrics", reader) as response:
        text = await response.text()
        assert response.headers["content-type"].startswith("text/plain")
    held.cancel()
    ok = 'ebb_gateway_requests_total{code="200",endpoint="chat",model="smollm2",outcome="ok"} 1.0'
    assert ok in text
    assert 'ebb_gateway_queue_depth{endpoint="asleep"} 1.0' in text
    assert 'ebb_gateway_inflight{endpoint="chat"} 0.0' in text
    assert 'ebb_gateway_rejections_total{reason="endpoint_not_found"} 1.0' in text
    assert "no-such" not in text, "labels are bounded by the endpoints there are"


class TestCut:
    """What still waits for a runner's first byte at the drain limit ends in an error, however far its answer is."""

    @pytest.fixture
    def settings(self) -> GatewaySettings:
        return replace(SETTINGS, drain_s=0.2)

    @pytest.mark.parametrize(("stream", "commented"), [(False, False), (True, False), (True, True)])
    async def test_hung_before_the_first_byte(self, world: World, stream: bool, commented: bool) -> None:
        runner = await world.runner()
        runner.behaviour.hang = "before_first_byte"
        await world.live(runner)
        running = asyncio.create_task(post(world.client, world.url, world.key, "chat", stream))
        await runner.until_running(1)
        await asyncio.sleep(0.5 if commented else 0)
        await world.gateway.stop()
        status, text = await running
        assert status == (200 if commented else 503)
        assert text.count('"code":"shutting_down"') == 1
        assert text.startswith(": waiting") == commented
