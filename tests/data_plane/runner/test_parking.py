"""Parking: the memory goes when the last request has ended, new ones go elsewhere, and it serves again when told."""

import asyncio
import mmap

import httpx
import numpy as np
import psutil
import pytest

from data_plane.execution.native_runner import NativeRunner
from data_plane.runner.parking import Parking
from tests.fakes.served import Fake, fake_runner, until

ASKED = {"prompt": "the quick brown fox jumps over the lazy dog", "max_tokens": 8, "temperature": 0}


class Lending:
    """Counts what the engine asks of its executor."""

    def __init__(self, fake: Fake) -> None:
        self.calls: list[str] = []
        fake.executor.give_back = lambda: self.calls.append("give")  # pyright: ignore[reportAttributeAccessIssue]
        fake.executor.take_back = lambda: self.calls.append("take")  # pyright: ignore[reportAttributeAccessIssue]


def attach(fake: Fake) -> tuple[Lending, list[object]]:
    told: list[object] = []
    parking = Parking(fake.service, lambda: told.append("parked"), lambda seconds: told.append(seconds >= 0.0))
    fake.service.on_park, fake.service.on_unpark = parking.park, parking.unpark
    return Lending(fake), told


async def test_parked_and_back(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_runner() as fake, httpx.AsyncClient(base_url=fake.url, headers=fake.headers) as http:
        lending, told = attach(fake)
        before = (await http.post("/v1/completions", json=ASKED)).json()["choices"][0]["text"]
        assert fake.engine.scheduler.pool.kept
        assert (await http.post("/park")).status_code == 202
        await until(lambda: told == ["parked"])
        assert lending.calls == ["give"] and not fake.engine.scheduler.pool.kept, "what is cached is gone, too"
        refused = await http.post("/v1/completions", json=ASKED)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.post("/park")).status_code == 202, "twice is once"
        assert (await http.post("/unpark")).status_code == 200
        assert lending.calls == ["give", "take"] and told == ["parked", True]
        assert (await http.post("/v1/completions", json=ASKED)).json()["choices"][0]["text"] == before
        assert (await http.post("/unpark")).status_code == 200 and len(told) == 2


async def test_what_runs_ends_first_and_one_that_is_wanted_again_is_not_parked() -> None:
    async with (
        fake_runner(step_delay_s=0.02) as fake,
        httpx.AsyncClient(base_url=fake.url, headers=fake.headers) as http,
    ):
        lending, told = attach(fake)
        running = asyncio.create_task(http.post("/v1/completions", json=ASKED | {"max_tokens": 40}, timeout=30))
        await until(lambda: fake.service.busy == 1)
        await http.post("/park")
        assert (await http.post("/v1/completions", json=ASKED)).status_code == 503
        await http.post("/unpark")
        assert (await http.post("/v1/completions", json=ASKED)).status_code == 200
        assert (await running).status_code == 200
        await asyncio.sleep(0.1)
        assert not lending.calls and told == [True], "it never gave anything back"


async def test_only_the_agent_parks() -> None:
    async with fake_runner() as fake, httpx.AsyncClient(base_url=fake.url) as http:
        attach(fake)
        for path in ("/park", "/unpark"):
            assert (await http.post(path)).status_code == 401
        assert not fake.service.parked


def test_the_native_cache_gives_its_pages_back() -> None:
    size = 64 << 20
    pages = mmap.mmap(-1, size)
    kv = np.frombuffer(pages, dtype=np.uint8)
    runner = NativeRunner(None, pages)  # pyright: ignore[reportArgumentType]  there is no model here
    kv[:] = 1
    full = psutil.Process().memory_info().rss
    runner.give_back()
    assert full - psutil.Process().memory_info().rss > size // 2
    runner.take_back()
    assert not kv.any(), "cleared when it is touched again"
    kv[:] = 2
    assert int(kv[-1]) == 2
