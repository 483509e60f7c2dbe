"""Runners in waiting: claimed by starts, replaced, adopted like all others, and never left behind."""

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from data_plane.node import cleanup, processes
from data_plane.node.bandwidth import read_bytes_per_s
from data_plane.node.records import NodePaths
from data_plane.node.standby import claimed_pid
from tests.fakes.node_agent import FAKE_RUNNER, agent_here, agent_process, desired, make_artifact
from tests.fakes.node_control import FakeControl


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_plane.node.standby.REST_S", 0.05)
    monkeypatch.setattr("data_plane.node.standby.LOOK_S", 0.05)


def waiting(home: Path) -> list[int]:
    """Those of this home that were started to wait."""
    run = str(home / "run" / "node")
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if "--standby" in process.cmdline() and FAKE_RUNNER[1] in process.cmdline() and process.cwd() == run:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


async def until(true: object, within_s: float = 10.0) -> None:
    assert callable(true)
    ends = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends, "it did not come to pass"
        await asyncio.sleep(0.02)


async def test_a_start_claims_one_and_another_takes_its_place(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control, standby=1):
        await until(lambda: len(waiting(home)) == 1)
        [first] = waiting(home)
        await until_claimable(home, first)
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        assert ready.pid == first and "claim" in ready.spans and "spawn" not in ready.spans
        assert (home / "logs" / "replica-r1.log").read_text().startswith("fake runner of r1")
        assert os.getsid(first) == first
        await until(lambda: len(waiting(home)) == 2, 5.0)
        [second] = set(waiting(home)) - {first}
        await control.want(desired("r1", digest, "stop"))
        await control.until_phase("r1", "stopped")
        assert processes.identity(first) is None
    assert processes.identity(second) is None, "what still waited went with the agent"


async def until_claimable(home: Path, pid: int) -> None:
    """It has told its agent that it waits, and the agent has had the time to hear it."""
    log = home / "logs" / "standby.log"
    await until(lambda: log.exists() and f"{pid} waits" in log.read_text())
    await asyncio.sleep(0.3)


async def test_one_that_dies_is_replaced_and_a_start_is_never_lost(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control, standby=1):
        await until(lambda: len(waiting(home)) == 1)
        [first] = waiting(home)
        os.kill(first, signal.SIGKILL)
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        assert ready.pid != first
        await until(lambda: set(waiting(home)) - {first, ready.pid})
        await control.want(desired("r1", digest, "stop"))
        await control.until_phase("r1", "stopped")


async def test_a_killed_agent_leaves_no_standby_and_its_claimed_runner_is_adopted(
    home: Path, control: FakeControl
) -> None:
    digest = make_artifact(home)
    agent = agent_process(home, control, "--standby", "1")
    try:
        await until(lambda: len(waiting(home)) == 1)
        [first] = waiting(home)
        await until_claimable(home, first)
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        assert ready.pid == first
    finally:
        agent.kill()
        agent.wait()
    await until(lambda: waiting(home) == [first])
    assert claimed_pid(NodePaths(home).status("r1")) == first
    async with agent_here(home, control):
        adopted = await control.until_phase("r1", "ready")
        assert adopted.pid == first and "claim" in adopted.spans
    # a record that cannot be read names nobody: its process is found by what it wrote
    NodePaths(home).record("r1").write_text("{")
    assert cleanup.stop_all(home, grace_s=2.0) == 1
    assert processes.identity(first) is None


async def test_a_replica_is_parked_and_serves_again(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        await control.want(desired("r1", digest, "park"))
        parked = await control.until_phase("r1", "parked")
        assert parked.pid == ready.pid and parked.url == ready.url
        await control.want(desired("r1", digest))
        again = await control.until(lambda report: [r.phase for r in report.replicas] == ["ready"])
        assert again.replicas[0].pid == ready.pid
        assert again.replicas[0].for_s is not None and again.replicas[0].for_s < 10.0
        await control.want(desired("r1", digest, "park"))
        await control.until(lambda report: [r.phase for r in report.replicas] == ["parked"])
        await control.want(desired("r1", digest, "drain"))
        stopped = await control.until_phase("r1", "stopped")
    assert stopped.failure is None and processes.identity(ready.pid or 0) is None


async def test_nothing_is_started_to_be_parked(home: Path, control: FakeControl) -> None:
    async with agent_here(home, control):
        await control.want(desired("r1", make_artifact(home), "park"))
        stopped = await control.until_phase("r1", "stopped")
    assert stopped.failure is None


def test_the_memory_is_read_at_a_credible_speed() -> None:
    assert 1e7 < read_bytes_per_s(1 << 20) < 1e13
