"""Promise 12: gateways come and go, and clients that read slowly harm nobody but themselves.

F26: told to leave, a gateway ends what it has. F27: killed, its clients find another and runners drop what is nobody's.
F31: slow readers.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.fakes.control import NODE_KEY
from tests.fakes.runner import FakeRunner
from tests.promises.faults import Fleet, Seen, until
from tests.promises.running import free_port

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Say it."}], "stream": True, "temperature": 0}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path)
    await made.start()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def gateway(fleet: Fleet) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str]]:
    """A gateway process that is ready."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "data_plane.gateway", "--control", fleet.control.url, "--port", str(port),
        env={**os.environ, "EBB_NODE_KEY": NODE_KEY}, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with fleet.client.get(url + "/readyz") as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.05)
        yield process, url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ask_any(fleet: Fleet, urls: list[str], body: dict[str, Any]) -> Seen:
    """As SDKs do: once more, with the next one, where no answer came or a 503 asks for it."""
    seen = Seen()
    for url in urls:
        seen = await fleet.ask(body, url)
        if not seen.broke and seen.status != 503:
            break
    return seen


async def test_f26_a_gateway_that_leaves_ends_its_streams(fleet: Fleet) -> None:
    runner = await fleet.runner("one")
    await fleet.live(runner)
    async with gateway(fleet) as (leaving, first), gateway(fleet) as (_, second):
        wanted = (await fleet.ask(ASKED | {"max_tokens": 80})).said()
        running = [fleet.begin(fleet.ask(ASKED | {"max_tokens": 80}, first)) for _ in range(100)]
        await running_on(runner.state, 100)
        leaving.send_signal(signal.SIGTERM)
        new: list[asyncio.Task[Seen]] = []
        for _ in range(20):
            new.append(fleet.begin(ask_any(fleet, [first, second], ASKED | {"max_tokens": 10})))
            await asyncio.sleep(0.02)
        seen = await asyncio.gather(*running)
        assert [one.outcome for one in seen] == ["complete"] * 100
        assert all(one.said() == wanted for one in seen)
        assert [one.outcome for one in await asyncio.gather(*new)] == ["complete"] * 20
        async with asyncio.timeout(5):
            assert await leaving.wait() == 0
    await fleet.at_rest()


async def test_f27_a_killed_gateways_requests_are_dropped_and_asked_again(fleet: Fleet) -> None:
    runner = await fleet.runner("one")
    await fleet.live(runner)
    async with gateway(fleet) as (killed, first), gateway(fleet) as (_, second):
        body = ASKED | {"max_tokens": 800}
        lost = [fleet.begin(fleet.ask(body, first)) for _ in range(40)]
        whole = [
            fleet.begin(ask_any(fleet, [first, second], body | {"stream": False, "max_tokens": 60})) for _ in range(10)
        ]
        await running_on(runner.state, 50)
        killed.kill()
        began = asyncio.get_running_loop().time()
        outcomes = [one.outcome for one in await asyncio.gather(*lost)]
        assert all(outcome.startswith("broke") for outcome in outcomes), "a cut stream never looks like a whole one"
        async with asyncio.timeout(5):
            while (await runner.state())["running"] > 10:  # noqa: ASYNC110  it has no event to offer
                await asyncio.sleep(0.02)
        dropped_s = asyncio.get_running_loop().time() - began
        print(f"F27: 40 orphans dropped after {dropped_s:.2f} s")
        assert [one.outcome for one in await asyncio.gather(*whole)] == ["complete"] * 10
    await fleet.at_rest()


async def running_on(state: Any, count: int) -> None:
    async with asyncio.timeout(10):
        while (await state())["running"] < count:  # noqa: ASYNC110  it has no event to offer
            await asyncio.sleep(0.02)


async def test_f31_slow_readers_are_bounded_and_cut_off(fleet: Fleet) -> None:
    """They ask for more than any buffer holds and read nothing; the others do not notice."""
    flood = await FakeRunner("flood", slots=500).start()
    flood.behaviour.events, flood.behaviour.text = 1_000, "x" * 65_536
    calm = await fleet.runner("calm")
    await fleet.live(flood.route)
    here = psutil.Process()
    before = here.memory_info().rss
    stalled: list[socket.socket] = []
    try:
        for _ in range(40):
            stalled.append(await stall(fleet))
        await until(lambda: flood.running == 40)
        await asyncio.sleep(0.3)
        grown = here.memory_info().rss - before
        await fleet.live(calm.route)
        seen = await asyncio.gather(*(fleet.ask(ASKED | {"max_tokens": 40}) for _ in range(20)))
        assert [one.outcome for one in seen] == ["complete"] * 20
        # 64 MiB were asked for by each; what is held of it is a few buffers of this process, as server and as client
        print(f"F31: 40 stalled readers held {grown / (1 << 20):.0f} MiB")
        assert grown < 40 * (4 << 20)
        await until(lambda: flood.running == 0, within_s=10)
    finally:
        for one in stalled:
            one.close()
        await flood.stop()
    await fleet.at_rest()


async def stall(fleet: Fleet) -> socket.socket:
    """Sends a request and never reads."""
    loop = asyncio.get_running_loop()
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.setblocking(False)
    await loop.sock_connect(one, ("127.0.0.1", fleet.gateway.port))
    body = json.dumps(ASKED).encode()
    head = (
        f"POST /e/chat/v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {fleet.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    await loop.sock_sendall(one, head.encode() + body)
    return one
