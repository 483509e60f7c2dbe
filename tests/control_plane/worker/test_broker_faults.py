"""F20 and F23 on a Redis of this test's own: killed and started again, full, and deaf to whoever publishes."""

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from litestar import Litestar
from litestar.testing import AsyncTestClient

from control_plane.app import create_app
from control_plane.db import metrics
from control_plane.jobs import canary
from control_plane.settings import Settings
from tests.control_plane.test_process import free_port

FAKE = Path(__file__).parents[2] / "fakes" / "importer.py"
START = """
import sys
from pathlib import Path
from control_plane.settings import Settings
from control_plane.worker.__main__ import run
home, database_url, broker_url, fake = sys.argv[1:]
sys.exit(run(Settings(Path(home), database_url, broker_url, "http://127.0.0.1:7071", "worker",
                      import_command=(sys.executable, fake))))
"""
Client = AsyncTestClient[Litestar]
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed"),
]


class Redis:
    """One server, empty at each start, always on the same port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client().ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def client(self) -> "redis.Redis":
        return redis.Redis("127.0.0.1", self.port, socket_timeout=10)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def broker(tmp_path: Path) -> Generator[Redis]:
    broker = Redis(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def on_redis(settings: Settings, broker: Redis) -> Settings:
    return replace(settings, broker_url=f"redis://127.0.0.1:{broker.port}/0")


@pytest.fixture
def worker(on_redis: Settings) -> Generator["subprocess.Popen[bytes]"]:
    """A worker process; gone after the test."""
    command = [sys.executable, "-c", START, str(on_redis.home), on_redis.database_url, on_redis.broker_url, str(FAKE)]
    with (on_redis.home / "worker.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
async def leading(on_redis: Settings, keys: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Client]:
    """A client of an application that runs its loops, with short patience."""
    monkeypatch.setattr("control_plane.jobs.sender.Sender.__init__.__defaults__", (0.5,))
    monkeypatch.setattr(canary.CanaryLoop.__init__, "__kwdefaults__", {"every_s": 0.3, "lost_s": 1.5})
    async with AsyncTestClient(create_app(on_redis)) as client:
        client.headers.update(keys.headers(keys.admin))
        yield client


async def _add(client: Client, name: str) -> httpx.Response:
    return await client.post("/api/v1/models", json={"name": name, "source": "file:/models/ok"})


async def _all_done(client: Client, count: int, timeout_s: float = 40) -> float:
    """Seconds until so many jobs are done, each at its first attempt."""
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while True:
            jobs = (await client.get("/api/v1/jobs")).json()["items"]
            if sum(job["status"] == "done" for job in jobs) == count:
                assert {job["attempts"] for job in jobs} == {1}
                return time.monotonic() - began
            await asyncio.sleep(0.05)


async def _lag(above_s: float = -1.0, below_s: float = 1e9, timeout_s: float = 40) -> float:
    """The canary's lag as soon as it lies between the two."""
    async with asyncio.timeout(timeout_s):
        while True:
            lag_s = metrics.STORE.get_sample_value("ebb_broker_canary_lag_seconds") or 0.0
            if above_s < lag_s < below_s:
                return lag_s
            await asyncio.sleep(0.05)


async def test_f20_workers_go_on_by_themselves_when_the_broker_is_back(
    leading: Client, worker: "subprocess.Popen[bytes]", broker: Redis
) -> None:
    assert (await _add(leading, "before")).status_code == 202
    await _all_done(leading, 1)
    await _lag(above_s=0.0, below_s=1.0)
    broker.kill()
    answers = [await _add(leading, f"during-{number}") for number in range(5)]
    assert [answer.status_code for answer in answers] == [202] * 5, "the API does not need the broker"
    most_s = await _lag(above_s=2.0)
    broker.start()
    done_s = await _all_done(leading, 6)
    lag_s = await _lag(below_s=1.0)
    assert worker.poll() is None, "it was never started again"
    print(f"F20: 5 jobs of the outage done {done_s:.1f} s after it; canary lag {most_s:.1f} s, then {lag_s:.2f} s")


@pytest.mark.parametrize("fault", ["full", "blocked"])
async def test_f23_a_broker_that_takes_nothing_does_not_block_the_api(
    leading: Client, worker: "subprocess.Popen[bytes]", broker: Redis, fault: str
) -> None:
    assert (await _add(leading, "before")).status_code == 202
    await _all_done(leading, 1)
    control = broker.client()
    if fault == "full":
        control.config_set("maxmemory", "1")
    else:
        control.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
    unsent = metrics.STORE.get_sample_value("ebb_broker_unsent_total") or 0.0
    took: list[float] = []
    for number in range(30):
        began = time.monotonic()
        answer = await _add(leading, f"m{number}") if number < 3 else await leading.get("/api/v1/jobs")
        took.append(time.monotonic() - began)
        assert answer.status_code in (200, 202), answer.text
        await asyncio.sleep(0.05)
    assert (metrics.STORE.get_sample_value("ebb_broker_unsent_total") or 0.0) > unsent, "the fault was there"
    if fault == "full":
        control.config_set("maxmemory", "0")
    else:
        control.execute_command("CLIENT", "UNPAUSE")
    done_s = await _all_done(leading, 4)
    print(f"F23 {fault}: API p99 {1000 * max(took):.0f} ms meanwhile; all jobs done {done_s:.1f} s after it")
    assert worker.poll() is None
