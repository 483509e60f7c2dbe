"""The life of replicas under an agent: real processes (the fake runner) and a fake control plane."""

import asyncio
import os
import signal
import time
from pathlib import Path

import aiohttp
import psutil
import pytest

from data_plane.node.processes import identity
from data_plane.wire.fleet import NodeReport
from tests.fakes.node_agent import agent_here, desired, make_artifact
from tests.fakes.node_control import FakeControl


async def test_start_ready_drain_stopped_forgotten(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        assert ready.url is not None and ready.url.startswith("http://127.0.0.1:")
        assert ready.token and ready.slots == 4 and ready.max_model_len == 2048
        assert {"spawn", "load"} <= set(ready.spans) and ready.pid is not None
        await control.until(lambda report: any(r.memory_bytes > 1_000_000 for r in report.replicas))

        await control.want(desired("r1", digest, "drain"))
        stopped = await control.until_phase("r1", "stopped")
        assert stopped.failure is None and stopped.pid is None
        assert identity(ready.pid) is None

        await control.want()
        await control.until(lambda report: not report.replicas)
    assert control.phases("r1")[-3:] == ["ready", "draining", "stopped"]
    assert not list((home / "run" / "node").glob("r1.*"))
    assert (home / "logs" / "replica-r1.log").exists()


async def test_phases_are_reported_on_the_way(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home, load_s=0.2)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        await control.until_phase("r1", "ready")
    assert control.phases("r1") == ["starting", "loading", "warming", "ready"]


@pytest.mark.parametrize(("fail", "fatal"), [("fatal", True), ("retry", False)])
async def test_a_failure_in_the_status_is_passed_on(home: Path, control: FakeControl, fail: str, fatal: bool) -> None:
    digest = make_artifact(home, fail=fail)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        failed = await control.until_phase("r1", "failed")
    assert failed.failure is not None
    assert failed.failure.fatal is fatal
    assert failed.failure.message == "The fake artifact cannot be loaded."


async def test_death_before_ready_tells_code_and_log(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home, die_in="loading", die_code=3, say="the reason in the log")
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        failed = await control.until_phase("r1", "failed")
    assert failed.failure is not None and not failed.failure.fatal
    assert "exit code 3" in failed.failure.message and "the reason in the log" in failed.failure.message


async def test_death_by_signal_9_before_ready_mentions_memory(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home, die_in="loading", die_signal=9)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        failed = await control.until_phase("r1", "failed")
    assert failed.failure is not None and not failed.failure.fatal
    assert "signal 9" in failed.failure.message and "out of memory" in failed.failure.message


async def test_kill_of_a_ready_runner_is_reported_within_a_second(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        assert ready.pid is not None
        os.kill(ready.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        failed = await control.until_phase("r1", "failed")
        assert time.monotonic() - killed_at < 1.0
    assert failed.failure is not None and "ended by signal 9" in failed.failure.message and not failed.failure.fatal


async def test_no_progress_is_killed(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home, hang_in="loading", ignore_sigterm=True)
    async with agent_here(home, control, stall_s=2.5):
        await control.want(desired("r1", digest))
        loading = await control.until_phase("r1", "loading")
        failed = await control.until_phase("r1", "failed")
        assert loading.pid is not None and identity(loading.pid) is None
    assert failed.failure is not None and "no progress" in failed.failure.message and not failed.failure.fatal


async def test_one_that_hangs_is_killed(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control, hang_s=0.6):
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        assert ready.pid is not None
        await asyncio.sleep(1.0)
        assert control.phases("r1")[-1] == "ready", "one that answers is left alone"
        os.kill(ready.pid, signal.SIGSTOP)
        failed = await control.until_phase("r1", "failed")
        assert identity(ready.pid) is None
    assert failed.failure is not None and "hung" in failed.failure.message and not failed.failure.fatal


async def test_stop_of_one_that_ignores_sigterm_ends_with_sigkill(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home, ignore_sigterm=True)
    async with agent_here(home, control, grace_s=0.3):
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        await control.want(desired("r1", digest, "stop"))
        stopped = await control.until_phase("r1", "stopped")
        assert ready.pid is not None and identity(ready.pid) is None
    assert stopped.failure is None


async def test_a_drain_that_takes_too_long_is_cut(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home, drain_s=3600, ignore_sigterm=True)
    async with agent_here(home, control, drain_s=0.5, grace_s=0.3):
        await control.want(desired("r1", digest))
        await control.until_phase("r1", "ready")
        await control.want(desired("r1", digest, "drain"))
        await control.until_phase("r1", "draining")
        await control.until_phase("r1", "stopped")


async def test_drain_while_loading_stops_at_once(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home, hang_in="loading")
    async with agent_here(home, control, grace_s=0.3):
        await control.want(desired("r1", digest))
        await control.until_phase("r1", "loading")
        await control.want(desired("r1", digest, "drain"))
        stopped = await control.until_phase("r1", "stopped")
    assert stopped.failure is None


async def test_unknown_ones_are_stopped_and_a_new_generation_replaces(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control):
        await control.want(desired("r1", digest), desired("r2", digest))
        first = await control.until_phase("r1", "ready")
        await control.until_phase("r2", "ready")
        await control.want(desired("r1", digest, generation=2))

        def replaced(report: NodeReport) -> bool:
            return [(r.id, r.generation, r.phase) for r in report.replicas] == [("r1", 2, "ready")]

        report = await control.until(replaced)
        assert first.pid is not None and identity(first.pid) is None
        assert report.replicas[0].pid != first.pid


async def test_missing_weights_fail_fatally_with_advice(home: Path, control: FakeControl) -> None:
    async with agent_here(home, control):
        await control.want(desired("r1", "sha256:" + "b" * 64), desired("r2", "sha256:../../etc"))
        for replica_id in ("r1", "r2"):
            failed = await control.until_phase(replica_id, "failed")
            assert failed.failure is not None and failed.failure.fatal
            assert "ebb models add" in failed.failure.message


async def test_a_drain_of_nothing_is_reported_as_stopped(home: Path, control: FakeControl) -> None:
    async with agent_here(home, control):
        await control.want(desired("r1", make_artifact(home), "drain"))
        stopped = await control.until_phase("r1", "stopped")
    assert stopped.failure is None


async def test_a_bad_replica_id_touches_no_file(home: Path, control: FakeControl) -> None:
    async with agent_here(home, control):
        await control.want(desired("../evil", make_artifact(home)))
        failed = await control.until_phase("../evil", "failed")
        assert failed.failure is not None and failed.failure.fatal
        await control.want()
        await control.until(lambda report: not report.replicas)
    assert not list(home.rglob("*evil*"))


async def test_a_runner_gets_no_secret_and_private_files(
    home: Path, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBB_NODE_KEY", "canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://canary")
    digest = make_artifact(home)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        environ = Path(f"/proc/{ready.pid}/environ").read_bytes()
        assert b"canary" not in environ and b"PATH=" in environ
        assert ready.pid is not None and os.getsid(ready.pid) == ready.pid
        for name in ("r1.spec.json", "r1.record.json", "keys.json"):
            assert (home / "run" / "node" / name).stat().st_mode & 0o777 == 0o600


async def test_a_command_that_does_not_exist_is_a_failure_not_a_crash(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control, command=("/nonexistent/python",)):
        await control.want(desired("r1", digest))
        failed = await control.until_phase("r1", "failed")
        assert failed.failure is not None and not failed.failure.fatal
        assert "could not be started" in failed.failure.message
        await control.want()
        await control.until(lambda report: not report.replicas)


async def test_what_a_runner_left_running_ends_with_it(home: Path, control: FakeControl) -> None:
    digest = make_artifact(home, with_child=True)
    async with agent_here(home, control):
        await control.want(desired("r1", digest))
        ready = await control.until_phase("r1", "ready")
        assert ready.pid is not None
        (child,) = psutil.Process(ready.pid).children()
        os.kill(ready.pid, signal.SIGKILL)
        await control.until_phase("r1", "failed")
        gone, _ = psutil.wait_procs([child], timeout=5)
        assert gone == [child]


async def test_f17_what_is_not_named_any_more_is_told_of_before_it_is_stopped(home: Path, control: FakeControl) -> None:
    """A control plane that has forgotten it hears of it, with all that it was told to run, and may name it again."""
    digest = make_artifact(home)
    async with agent_here(home, control):
        wanted = desired("r1", digest)
        await control.want(wanted)
        await control.until_phase("r1", "ready")
        calls = len(control.calls)
        control.take_back = True
        await control.want()
        await control.until(lambda _: "report" in control.calls[calls:])
        await asyncio.sleep(0.5)
        report = control.reports[-1]
        assert [(one.phase, one.wanted) for one in report.replicas] == [("ready", wanted)], "it runs on"
        control.take_back = False
        await control.want()
        await control.until(lambda report: not report.replicas)


async def test_f22_a_command_for_an_older_generation_changes_nothing_and_is_counted(
    home: Path, control: FakeControl
) -> None:
    digest = make_artifact(home)
    async with agent_here(home, control):
        await control.want(desired("r1", digest, generation=2))
        ready = await control.until_phase("r1", "ready")
        await control.want(desired("r1", digest, "stop", generation=1))
        await asyncio.sleep(0.5)
        assert control.phases("r1")[-1] == "ready" and control.reports[-1].replicas[0].pid == ready.pid
        [registration] = control.registrations
        headers = {"authorization": f"Bearer {registration.agent_token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as client,
            client.get(registration.agent_url + "/metrics") as answer,
        ):
            assert "ebb_node_stale_commands_total 1.0" in await answer.text()
        await control.want()
        await control.until(lambda report: not report.replicas)
