"""An agent that dies, restarts, loses its control plane or meets another: the runners do not notice."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from data_plane.node import cleanup
from data_plane.node.agent import Fenced
from data_plane.node.processes import find_by_argument, identity
from data_plane.node.records import NodePaths, Record, save
from tests.fakes.node_agent import agent_here, agent_process, desired, make_artifact
from tests.fakes.node_control import FakeControl


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def kill(agent: subprocess.Popen[bytes]) -> None:
    agent.kill()
    agent.wait(10)


async def test_an_agent_killed_and_restarted_adopts(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    await control.want(desired("r1", digest))
    agent = agent_process(home, control)
    try:
        before = await control.until_phase("r1", "ready")
        kill(agent)
        assert before.pid is not None and identity(before.pid) is not None
        control.reports.clear()
        agent = agent_process(home, control)
        after = await control.until_phase("r1", "ready")
        assert (after.pid, after.url, after.token) == (before.pid, before.url, before.token)
        assert find_by_argument(str(home / "run" / "node" / "r1.spec.json")) == [before.pid]
        assert control.phases("r1") == ["ready"], "an adopted replica goes through no start again"

        os.kill(before.pid, signal.SIGKILL)
        failed = await control.until_phase("r1", "failed", timeout_s=2)
        assert failed.failure is not None and not failed.failure.fatal
    finally:
        kill(agent)


async def test_became_ready_or_died_between_two_agents(home: Path, control: FakeControl) -> None:
    slow, quick = make_artifact(home, "a", load_s=0.3), make_artifact(home, "b")
    await control.want(desired("r1", slow), desired("r2", quick))
    async with agent_here(home, control):
        await control.until_phase("r1", "loading")
        second = await control.until_phase("r2", "ready")
    assert second.pid is not None
    os.kill(second.pid, signal.SIGKILL)
    status = home / "run" / "node" / "r1.status.json"
    async with asyncio.timeout(10):
        while b'"ready"' not in status.read_bytes():  # noqa: ASYNC110 - a file written by another process
            await asyncio.sleep(0.02)
    control.reports.clear()
    async with agent_here(home, control):
        await control.until_phase("r1", "ready")
        failed = await control.until_phase("r2", "failed")
        assert failed.failure is not None and "once ready" in failed.failure.message
    # the end is remembered by a third agent as well, word for word
    control.reports.clear()
    async with agent_here(home, control):
        again = await control.until_phase("r2", "failed")
        assert again.failure == failed.failure


async def test_what_is_left_is_reported_before_anything_is_started(home: Path, control: FakeControl) -> None:
    await control.want(desired("r1", make_artifact(home)))
    async with agent_here(home, control):
        await control.until_phase("r1", "ready")
    assert control.calls[:3] == ["register", "report", "desired"]
    assert control.reports[0].replicas == ()


async def test_a_start_interrupted_before_its_pid_was_noted_is_found(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    await control.want(desired("r1", digest))
    async with agent_here(home, control):
        before = await control.until_phase("r1", "ready")
    paths = NodePaths(home)
    record = msgspec.json.decode(paths.record("r1").read_bytes(), type=Record)
    save(paths, msgspec.structs.replace(record, pid=0, identity="", was_ready=False))
    control.reports.clear()
    async with agent_here(home, control):
        after = await control.until_phase("r1", "ready")
    assert after.pid == before.pid


async def test_a_reused_pid_is_never_signalled(home: Path, control: FakeControl) -> None:
    bystander = sleeper()
    try:
        paths = NodePaths(home)
        paths.make()
        save(paths, Record("r1", "chat", 1, pid=bystander.pid, identity="another boot:1", was_ready=True))
        async with agent_here(home, control):
            await control.until_phase("r1", "failed")
            await control.want()
            await control.until(lambda report: not report.replicas)
        save(paths, Record("r1", "chat", 1, pid=bystander.pid, identity="another boot:1", was_ready=True))
        assert cleanup.stop_all(home, 0.0) == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_a_broken_record_stops_its_runner(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    await control.want(desired("r1", digest))
    async with agent_here(home, control):
        before = await control.until_phase("r1", "ready")
    (home / "run" / "node" / "r1.record.json").write_text("{")
    control.reports.clear()
    async with agent_here(home, control):
        after = await control.until_phase("r1", "ready")
        assert before.pid is not None and identity(before.pid) is None
        assert after.pid != before.pid


async def test_the_control_plane_goes_away_and_comes_back(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control):
        await control.want(desired("r1", digest), desired("r2", digest))
        first = await control.until_phase("r1", "ready")
        second = await control.until_phase("r2", "ready")
        port = control.port
        await control.stop()
        assert second.pid is not None and first.pid is not None
        os.kill(second.pid, signal.SIGKILL)
        await asyncio.sleep(1.0)
        assert identity(first.pid) is not None
        control.reports.clear()
        await control.start(port)
        await control.until_phase("r2", "failed")
        assert (await control.until_phase("r1", "ready")).pid == first.pid


async def test_a_forgotten_node_and_a_stale_epoch_register_again(home: Path, control: FakeControl) -> None:
    async with agent_here(home, control):
        await control.until(lambda report: report.epoch == 1)
        control.forget_node = True
        await control.until(lambda report: report.epoch == 2)
        control.epoch = 7
        await control.until(lambda report: report.epoch == 8)
    assert {registration.name for registration in control.registrations} == {"node-a"}


async def test_two_agents_of_one_name_do_not_duel_for_ever(home: Path, control: FakeControl) -> None:
    async def steal() -> None:
        while True:
            control.epoch += 1
            await asyncio.sleep(0.05)

    thief = asyncio.create_task(steal())
    try:
        with pytest.raises(Fenced, match="Two machines must not share a name"):
            async with agent_here(home, control) as agent, asyncio.timeout(30):
                await agent
    finally:
        thief.cancel()


async def test_one_agent_per_home(home: Path, control: FakeControl) -> None:
    first = agent_process(home, control)
    try:
        await control.until(lambda report: report.epoch == 1)
        second = agent_process(home, control)
        assert await asyncio.to_thread(second.wait, 20) == 1
        said = (home.parent / "agent.log").read_text()
        assert f"A node agent (pid {first.pid}) already runs on" in said
        assert len(control.registrations) == 1
    finally:
        kill(first)


@pytest.mark.parametrize("stop_runners", [False, True])
async def test_sigterm_leaves_runners_unless_told_otherwise(
    home: Path, control: FakeControl, stop_runners: bool
) -> None:
    await control.want(desired("r1", make_artifact(home)))
    agent = agent_process(home, control, *(["--stop-runners-on-exit"] if stop_runners else []))
    try:
        ready = await control.until_phase("r1", "ready")
        agent.terminate()
        assert await asyncio.to_thread(agent.wait, 20) == 0
        assert ready.pid is not None
        assert (identity(ready.pid) is None) is stop_runners
    finally:
        kill(agent)


async def test_cleanup_stops_every_recorded_runner(home: Path, control: FakeControl) -> None:
    polite, stubborn = make_artifact(home, "a"), make_artifact(home, "b", ignore_sigterm=True)
    await control.want(desired("r1", polite), desired("r2", stubborn))
    agent = agent_process(home, control)
    try:
        pids = [(await control.until_phase(replica_id, "ready")).pid for replica_id in ("r1", "r2")]
    finally:
        kill(agent)
    command = [sys.executable, "-m", "data_plane.node.cleanup", "--home", str(home), "--grace", "0.5"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, "Stopped 2 runners.")
    assert all(pid is not None and identity(pid) is None for pid in pids)
    assert not list((home / "run" / "node").glob("r?.*"))


def test_the_agent_refuses_to_start_without_a_key_or_a_home(home: Path) -> None:
    command = [sys.executable, "-m", "data_plane.node", "--control", "http://127.0.0.1:1", "--home"]
    bare = {key: value for key, value in os.environ.items() if key != "EBB_NODE_KEY"}
    keyless = subprocess.run([*command, str(home), "--name", "a"], env=bare, capture_output=True, text=True, timeout=30)
    assert keyless.returncode == 2 and "EBB_NODE_KEY is not set" in keyless.stderr
    (home / "file").write_text("")
    with_key = bare | {"EBB_NODE_KEY": "k"}
    unwritable = subprocess.run(
        [*command, str(home / "file" / "x"), "--name", "a"], env=with_key, capture_output=True, text=True, timeout=30
    )
    assert unwritable.returncode == 1 and "The node agent cannot run" in unwritable.stderr
    assert "Traceback" not in unwritable.stderr
