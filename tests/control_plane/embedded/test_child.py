"""A child is started again when it dies, stopped when it is told to, and killed when it does not obey."""

import asyncio
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from control_plane.embedded.child import Child, ChildSpec

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
WITH_GRANDCHILD = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


def spec(tmp_path: Path, code: str, grace_s: float = 5.0) -> ChildSpec:
    return ChildSpec("child", (sys.executable, "-c", code), dict(os.environ), tmp_path / "child.log", tmp_path, grace_s)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110 # what is waited for happens in another process
            await asyncio.sleep(0.01)


def said(tmp_path: Path) -> list[str]:
    log = tmp_path / "child.log"
    return log.read_text().splitlines() if log.exists() else []


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_killed_it_runs_again_with_another_pid(tmp_path: Path) -> None:
    pids: list[int] = []
    child = Child(spec(tmp_path, SLEEPER), lambda c: pids.append(c.record.pid) if c.record else None)
    child.start()
    await until(lambda: len(pids) == 1)
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: len(pids) == 2)
    assert child.exits == [-signal.SIGKILL]
    assert pids[0] != pids[1]
    await child.stop()
    assert gone(pids[1])
    assert child.exits[1:] == [-signal.SIGTERM]


async def test_its_group_goes_with_it(tmp_path: Path) -> None:
    child = Child(spec(tmp_path, WITH_GRANDCHILD), lambda _: None)
    child.start()
    await until(lambda: len(said(tmp_path)) == 1)
    grandchild = int(said(tmp_path)[0])
    assert child.record is not None
    os.kill(child.record.pid, signal.SIGKILL)
    await until(lambda: gone(grandchild))
    await child.stop()


async def test_what_does_not_obey_is_killed_after_its_grace(tmp_path: Path) -> None:
    child = Child(spec(tmp_path, STUBBORN, grace_s=0.2), lambda _: None)
    child.start()
    await until(lambda: said(tmp_path) == ["up"])
    started = time.monotonic()
    await child.stop()
    assert child.exits == [-signal.SIGKILL]
    assert time.monotonic() - started >= 0.2


async def test_restarts_of_what_dies_at_once_come_at_growing_distances(tmp_path: Path) -> None:
    starts: list[float] = []
    child = Child(
        spec(tmp_path, "raise SystemExit(3)"), lambda c: starts.append(time.monotonic()) if c.record else None
    )
    child.start()
    await until(lambda: len(child.exits) >= 3)
    await child.stop()
    assert set(child.exits) == {3}
    assert starts[2] - starts[1] >= 0.4


async def test_a_start_that_cannot_be_prepared_is_told(tmp_path: Path) -> None:
    def refuse() -> None:
        raise ValueError("no cluster")

    made = spec(tmp_path, SLEEPER)
    child = Child(dataclasses.replace(made, before_start=refuse), lambda _: None)
    child.start()
    await until(lambda: child.failed is not None)
    assert str(child.failed) == "no cluster"
    await child.stop()
