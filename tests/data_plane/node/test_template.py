"""The process that forks runners in waiting: real ones, with everything imported."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest

from data_plane.node import processes
from data_plane.node.launch import RunnerSettings
from data_plane.node.records import NodePaths, Record
from data_plane.node.standby import Standbys
from data_plane.node.template import Template
from data_plane.wire.fleet import Assignment
from tests.fakes.served import until


async def template_in(folder: Path) -> Template:
    return await Template.start(RunnerSettings().command, folder / "standby.log", folder, "")


async def test_forks_are_our_children_and_become_runners_or_end_with_us(tmp_path: Path) -> None:
    template = await template_in(tmp_path)
    try:
        await template.prepare((str(tmp_path / "no artifact"),))
        (first, to_first), (second, to_second) = template.fork(), template.fork()
        for fork in (first, second):
            assert psutil.Process(fork.pid).ppid() == os.getpid() and os.getsid(fork.pid) == fork.pid
            assert fork.poll() is None
    finally:
        await template.close()
    assert first.poll() is None and second.poll() is None, "what it has forked goes on"
    line = Assignment(str(tmp_path / "none.json"), str(tmp_path / "replica.log"))
    to_first.sendall(msgspec.json.encode(line) + b"\n")
    to_first.close()
    assert await asyncio.to_thread(first.wait, 20.0) == 2, "as a runner does whose spec cannot be read"
    assert "cannot be read" in (tmp_path / "replica.log").read_text()
    to_second.close()
    assert await asyncio.to_thread(second.wait, 20.0) == 0
    assert "cannot be read" not in (tmp_path / "standby.log").read_text()


async def test_one_that_was_killed_says_so_and_does_not_fork(tmp_path: Path) -> None:
    template = await template_in(tmp_path)
    fork, channel = template.fork()
    [child] = [one for one in psutil.Process().children() if "--template" in one.cmdline() and one.pid != fork.pid]
    child.send_signal(signal.SIGKILL)
    await until(lambda: not template.is_free)
    with pytest.raises(OSError):
        template.fork()
    with pytest.raises(OSError):
        await template.prepare(())
    await template.close()
    fork.kill()
    assert await asyncio.to_thread(fork.wait, 5.0) == -signal.SIGKILL
    assert fork.poll() == -signal.SIGKILL
    channel.close()


async def test_one_that_cannot_import_ends(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="its log says why"):
        await Template.start((*RunnerSettings().command, "--text"), tmp_path / "standby.log", tmp_path, "")


async def test_as_many_as_are_claimed_at_once_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_plane.node.standby.REST_S", 0.01)
    paths = NodePaths(tmp_path)
    paths.make()
    standbys = Standbys(paths, RunnerSettings(standby=1, forks=True), lambda: standbys.count == 1)
    assert standbys.claim(Record("early", "chat", 1)) is None, "a start does not wait for imports"
    standbys.start()
    try:
        await until(lambda: standbys.count == 1, 30)
        claimed = [standbys.claim(Record(f"r{number}", "chat", 1)) for number in range(3)]
        assert len({one[0].pid for one in claimed if one is not None}) == 3
        for one in claimed:
            assert one is not None and one[1].claimed and one[1].identity != "gone"
            assert await asyncio.to_thread(one[0].wait, 20.0) == 2
        await until(lambda: standbys.count == 1, 10)
        [waiting] = [one.pid for one in psutil.Process().children() if "--template" in one.cmdline()][1:]
    finally:
        await standbys.close()
    assert processes.identity(waiting) is None and standbys.count == 0
