"""Real worker processes on the filesystem broker: jobs are done, and done again when a worker is killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient

from control_plane.app import create_app
from control_plane.settings import Settings

FAKE = Path(__file__).parents[2] / "fakes" / "importer.py"
START = """
import sys
from pathlib import Path
from control_plane.settings import Settings
from control_plane.worker.__main__ import run
home, database_url, fake = sys.argv[1:]
sys.exit(run(Settings(Path(home), database_url, "filesystem://", "http://127.0.0.1:7071", "worker",
                      import_command=(sys.executable, fake))))
"""

Start = Callable[[], "subprocess.Popen[bytes]"]
Client = AsyncTestClient[Litestar]


@pytest.fixture
def start_worker(settings: Settings) -> Generator[Start]:
    """Starts workers; all of them are gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", START, str(settings.home), settings.database_url, str(FAKE)]
        with (settings.home / "worker.log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
async def leading(settings: Settings, keys: Any) -> AsyncGenerator[Client]:
    """A client of an application that runs its loops."""
    async with AsyncTestClient(create_app(settings)) as client:
        client.headers.update(keys.headers(keys.admin))
        yield client


async def _add(client: Client, name: str, source: str) -> str:
    answer = await client.post("/api/v1/models", json={"name": name, "source": source})
    assert answer.status_code == 202, answer.text
    return answer.json()["job"]["id"]


async def _until(client: Client, job_id: str, good: Callable[[dict[str, Any]], bool], timeout_s: float = 40) -> Any:
    async with asyncio.timeout(timeout_s):
        while True:
            job = (await client.get(f"/api/v1/jobs/{job_id}")).json()
            if good(job):
                return job
            await asyncio.sleep(0.1)


def _downloading(job: dict[str, Any]) -> bool:
    return bool(job["progress"]) and job["progress"]["done"] > 3


async def test_a_model_is_imported(leading: Client, start_worker: Start, settings: Settings) -> None:
    start_worker()
    job = await _until(leading, await _add(leading, "tiny", "file:/models/ok"), lambda job: job["status"] == "done")
    assert job["attempts"] == 1 and job["subject"] == "tiny" and job["stage"] == "write"
    assert job["result"]["parameters"] == 134_515_008
    model = (await leading.get("/api/v1/models/tiny")).json()
    assert model["status"] == "ready" and model["artifact"].startswith("sha256:")
    assert model["artifact_bytes"] == 5_000_000_000 and len(model["chat_template"]) == 84_000
    assert not (settings.scratch_dir / job["id"]).exists()
    events = (await leading.get("/api/v1/events", params={"subject": "tiny"})).json()["items"]
    told = [(event["kind"], event["type"]) for event in events]
    assert told == [("model", "importing"), ("job", "running"), ("model", "ready"), ("job", "done")]


async def test_failures_are_told_with_their_reasons(leading: Client, start_worker: Start) -> None:
    start_worker()
    for kind, reason in (("fatal", "truncated at byte 12"), ("garbage", "not of its protocol")):
        job_id = await _add(leading, kind, f"file:/models/{kind}")
        job = await _until(leading, job_id, lambda job: job["status"] == "failed")
        assert reason in job["error"] and job["attempts"] == 1
        model = (await leading.get(f"/api/v1/models/{kind}")).json()
        assert model["status"] == "failed" and reason in model["error"]
    again = await leading.post("/api/v1/models", json={"name": "fatal", "source": "file:/models/ok"})
    assert again.status_code == 202
    await _until(leading, again.json()["job"]["id"], lambda job: job["status"] == "done")


async def test_a_job_whose_worker_is_killed_is_picked_up_again(
    leading: Client, start_worker: Start, settings: Settings
) -> None:
    first = start_worker()
    job_id = await _add(leading, "tiny", "file:/models/slow")
    await _until(leading, job_id, _downloading)
    importer = int((settings.artifacts_dir / "starts").read_text())
    first.send_signal(signal.SIGKILL)
    first.wait()
    start_worker()
    job = await _until(leading, job_id, lambda job: job["status"] == "done")
    assert job["attempts"] == 2
    assert (await leading.get("/api/v1/models/tiny")).json()["status"] == "ready"
    assert not psutil.pid_exists(importer) or psutil.Process(importer).status() == psutil.STATUS_ZOMBIE


async def test_a_stopped_worker_gives_its_job_back_at_once(
    leading: Client, start_worker: Start, settings: Settings
) -> None:
    first = start_worker()
    job_id = await _add(leading, "tiny", "file:/models/slow")
    await _until(leading, job_id, _downloading)
    first.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait, 10) == 0
    job = (await leading.get(f"/api/v1/jobs/{job_id}")).json()
    assert (job["status"], job["attempts"]) == ("queued", 0)
    start_worker()
    assert (await _until(leading, job_id, lambda job: job["status"] == "done"))["attempts"] == 1


async def test_removing_a_model_calls_off_its_import(leading: Client, start_worker: Start, settings: Settings) -> None:
    start_worker()
    job_id = await _add(leading, "tiny", "file:/models/slow")
    await _until(leading, job_id, _downloading)
    importer = int((settings.artifacts_dir / "starts").read_text())
    assert (await leading.delete("/api/v1/models/tiny")).status_code == 204
    async with asyncio.timeout(20):
        while psutil.pid_exists(importer):  # noqa: ASYNC110 - a process rings no bell
            await asyncio.sleep(0.1)
    job = (await leading.get(f"/api/v1/jobs/{job_id}")).json()
    assert (job["status"], job["error"]) == ("failed", "The model was removed.")
    ok = await _add(leading, "next", "file:/models/ok")
    await _until(leading, ok, lambda job: job["status"] == "done")


async def test_an_idle_worker_costs_little(leading: Client, start_worker: Start) -> None:
    process = psutil.Process(start_worker().pid)
    await _until(leading, await _add(leading, "tiny", "file:/models/ok"), lambda job: job["status"] == "done")
    await asyncio.sleep(1)
    before = process.cpu_times()
    await asyncio.sleep(5)
    after = process.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    print("worker idle cpu share", used_s / 5, "rss MB", process.memory_info().rss / 2**20, os.getpid())
    assert used_s / 5 < 0.04


async def test_another_artifact_is_made_of_the_same_source(leading: Client, start_worker: Start) -> None:
    start_worker()
    await _until(leading, await _add(leading, "tiny", "file:/models/gated"), lambda job: job["status"] == "done")
    for body, ends in (
        ({"quant": "int8"}, "done"),
        ({"quant": "int4"}, "failed"),
        ({"quant": "int4", "force": True}, "done"),
    ):
        asked = await leading.post("/api/v1/models/tiny/artifacts", json=body)
        assert asked.status_code == 202, asked.text
        job = await _until(leading, asked.json()["job"]["id"], lambda job: job["status"] in ("done", "failed"))
        assert job["status"] == ends, job
        if ends == "failed":
            assert job["error"] == "int4 has 1.09 times the perplexity, more than 1.06; use --force."
            assert job["attempts"] == 1
    model = (await leading.get("/api/v1/models/tiny")).json()
    assert model["status"] == "ready", "a refused artifact is no fault of the model"
    assert {each["quant"]: each["bytes"] for each in model["artifacts"]} == {
        "bf16": 5_000_000_000, "int8": 2_500_000_000, "int4": 2_500_000_000,
    }  # fmt: skip
    assert model["artifacts"][1]["quality"]["perplexity_ratio"] == 1.004


async def test_what_is_not_what_was_asked_for_is_not_kept(leading: Client, start_worker: Start) -> None:
    start_worker()
    for kind, says in (("deaf", "made 'none'"), ("other", "was cdcd")):
        await _until(leading, await _add(leading, kind, f"file:/models/{kind}"), lambda job: job["status"] == "done")
        asked = await leading.post(f"/api/v1/models/{kind}/artifacts", json={"quant": "int8"})
        job = await _until(leading, asked.json()["job"]["id"], lambda job: job["status"] in ("done", "failed"))
        assert job["status"] == "failed" and says in job["error"], job
        model = (await leading.get(f"/api/v1/models/{kind}")).json()
        assert [each["quant"] for each in model["artifacts"]] == ["bf16"]


async def test_auto_is_kept_as_what_it_became(leading: Client, start_worker: Start) -> None:
    start_worker()
    made = await leading.post("/api/v1/models", json={"name": "tiny", "source": "file:/models/ok", "quant": "auto"})
    await _until(leading, made.json()["job"]["id"], lambda job: job["status"] == "done")
    model = (await leading.get("/api/v1/models/tiny")).json()
    assert [each["quant"] for each in model["artifacts"]] == ["int8"]
    assert model["artifact"] == "sha256:" + "8" * 64
