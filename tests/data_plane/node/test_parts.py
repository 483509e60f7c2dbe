"""The agent's small parts, each by itself: outcome, log files, records, devices, weights, launch, processes."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.node import devices, launch, logfile, outcome, processes, records, weights_cache
from data_plane.node.control import backoff_s
from data_plane.node.main import parse
from data_plane.wire.fleet import RunnerStatus, StartFailure


def test_what_an_end_means() -> None:
    ready = RunnerStatus("r", 1, "ready", 0.0)
    told = RunnerStatus("r", 1, "failed", 0.0, failure=StartFailure("bad file", fatal=True))
    stopped = RunnerStatus("r", 1, "stopped", 0.0)
    judge = outcome.judge
    assert judge(asked="drain", was_ready=True, status=ready, code=-9, log_tail="") is None
    assert judge(asked="run", was_ready=False, status=told, code=1, log_tail="x") == told.failure
    assert judge(asked="run", was_ready=True, status=ready, code=0, log_tail="") is None
    assert judge(asked="run", was_ready=True, status=stopped, code=None, log_tail="") is None
    lost = judge(asked="run", was_ready=True, status=ready, code=None, log_tail="")
    assert lost is not None and not lost.fatal
    early = judge(asked="run", was_ready=False, status=None, code=0, log_tail="")
    assert early is not None and "exit code 0 before it was ready" in early.message and not early.fatal


@given(st.text(max_size=3000))
def test_a_quoted_log_is_short_and_printable(text: str) -> None:
    quoted = outcome.quote(text)
    assert quoted.isprintable() or quoted == ""
    assert len(quoted) <= outcome.LOG_CHARACTERS + 30


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b"")), max_size=40),
       st.integers(0, 50), st.integers(1, 64))  # fmt: skip
def test_read_tail_gives_the_last_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], count: int,
                                        block: int) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "tail.log"
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(content)
    before, logfile.BLOCK_BYTES = logfile.BLOCK_BYTES, block
    try:
        tail, offset = logfile.read_tail(path, count)
    finally:
        logfile.BLOCK_BYTES = before
    assert tail == b"".join(content.splitlines(keepends=True)[-count:] if count else [])
    assert offset == len(content)


def test_read_on_follows_growth_and_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    assert logfile.read_on(path, 5) == (b"", 0)
    path.write_bytes(b"hello")
    assert logfile.read_on(path, 2) == (b"llo", 5)
    path.write_bytes(b"x")
    assert logfile.read_on(path, 5) == (b"x", 1)


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for age in range(5):
        path = tmp_path / f"replica-{age}.log"
        path.write_text("")
        os.utime(path, (1000 - age, 1000 - age))
    logfile.prune(tmp_path, "replica-*.log", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replica-0.log", "replica-1.log"]


def test_records_come_back_and_broken_ones_are_named(tmp_path: Path) -> None:
    paths = records.NodePaths(tmp_path)
    paths.make()
    record = records.Record("r1", "chat", 3, pid=7, identity="x")
    records.save(paths, record)
    paths.record("r2").write_text("{")
    (paths.run / ".r3.record.json.0000").write_text("")
    assert records.load_all(paths) == ([record], ["r2"])
    records.remove(paths, "r1")
    assert records.load_all(paths) == ([], ["r2"])


@pytest.mark.parametrize("bad", ["../x", "a/b", "", "a..b", "A", "x" * 64, "a\0b", ".hidden", "a\n"])
def test_no_bad_id_becomes_a_path(tmp_path: Path, bad: str) -> None:
    paths = records.NodePaths(tmp_path)
    for make in (paths.record, paths.spec, paths.status, paths.log):
        with pytest.raises(ValueError, match="not a replica id"):
            make(bad)


def test_a_failed_write_leaves_the_old_content_and_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    records.write_private(path, b"old")

    def full(_self: Path, _target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        records.write_private(path, b"new")
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_weights_are_found_by_digest_alone(tmp_path: Path) -> None:
    digest = "sha256:" + "c" * 64
    with pytest.raises(weights_cache.ArtifactMissing, match="ebb models add tiny"):
        weights_cache.resolve(tmp_path, digest, "tiny")
    folder = tmp_path / digest.replace(":", "-")
    folder.mkdir()
    with pytest.raises(weights_cache.ArtifactMissing):  # half a folder is none
        weights_cache.resolve(tmp_path, digest, "tiny")
    (folder / "manifest.json").write_text("{}")
    assert weights_cache.resolve(tmp_path, digest, "tiny") == folder
    with pytest.raises(weights_cache.ArtifactMissing, match="not 'sha256:'"):
        weights_cache.resolve(tmp_path, "sha256:../../x", "tiny")


def cgroup(tmp_path: Path, line: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        path = tmp_path / "cg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    membership = tmp_path / "membership"
    membership.write_text(line)
    return tmp_path / "cg", membership


def test_control_group_limits_version_2(tmp_path: Path) -> None:
    files = {"a/memory.max": "67108864\n", "a/memory.current": "20000000\n", "a/memory.stat": "inactive_file 5000000\n",
             "a/b/memory.max": "max\n", "a/b/memory.current": "1000\n", "a/cpu.max": "100000 100000\n",
             "a/b/cpu.max": "max 100000\n"}  # fmt: skip
    where = cgroup(tmp_path, "0::/a/b\n", files)
    assert devices.memory(*where) == devices.Memory(67108864, 67108864 - 20000000 + 5000000)
    assert devices.cpus(*where) == 1


def test_control_group_limits_version_1(tmp_path: Path) -> None:
    files = {"memory/a/memory.limit_in_bytes": "67108864", "memory/a/memory.usage_in_bytes": "67108865",
             "cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000"}  # fmt: skip
    where = cgroup(tmp_path, "4:memory:/a\n3:cpu,cpuacct:/a\n", files)
    assert devices.memory(*where) == devices.Memory(67108864, 0)
    assert devices.cpus(tmp_path / "cg", where[1]) == 1


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    where = cgroup(tmp_path, "0::/\n", {"memory.max": "max\n"})
    now = devices.memory(*where)
    assert 0 < now.free_bytes <= now.total_bytes
    assert devices.cpus(*where) == len(os.sched_getaffinity(0))
    assert devices.find()[-1].kind == "cpu" and devices.find()[-1].memory_bytes > 0


def test_visible_devices_as_cuda_reads_them() -> None:
    both = [("0", "GPU-aaaa-1"), ("1", "GPU-bbbb-2")]
    assert devices.visible(None, both) == [0, 1]
    assert devices.visible("1,0", both) == [1, 0]
    assert devices.visible("GPU-bb", both) == [1]
    assert devices.visible("", both) == []
    assert devices.visible("0,7,1", both) == [0]
    assert devices.visible("0,0", both) == [0]


def test_the_environment_is_an_allow_list() -> None:
    ours = {"PATH": "/bin", "EBB_NODE_KEY": "k", "HTTPS_PROXY": "p", "HF_TOKEN": "t", "CUDA_VISIBLE_DEVICES": "1"}
    assert launch.environment(ours) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"}


def test_backoff_grows_to_its_cap_and_varies() -> None:
    assert all(0.05 <= backoff_s(0) <= 0.1 for _ in range(50))
    assert all(1.0 <= backoff_s(attempt) <= 2.0 for attempt in (10, 1000, 10**6))
    assert len({backoff_s(3) for _ in range(20)}) > 1


def test_the_command_line_refuses_a_bad_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--control", "http://x", "--home", "h", "--name", "../a"], {"EBB_NODE_KEY": "k"})
    assert "is not a name" in capsys.readouterr().err


async def test_an_identity_ends_with_its_process() -> None:
    child = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", "import time; time.sleep(600)"])
    who = processes.identity(child.pid)
    assert who is not None and processes.is_alive(child.pid, who)
    assert not processes.is_alive(child.pid, who + "0") and not processes.is_alive(child.pid, "")
    assert not processes.terminate(child.pid, "somebody else")
    watch = processes.ExitWatch(child.pid, who, child)
    assert await watch.wait(0.05) is False
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while not await watch.wait(None):
            pass
    watch.close()
    assert watch.code == -9 and processes.identity(child.pid) is None


async def test_without_pidfd_an_end_is_noticed_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    child = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", "import time; time.sleep(600)"])
    watch = processes.ExitWatch(child.pid, processes.identity(child.pid) or "", child)
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while not await watch.wait(None):
            pass
    watch.close()
    assert watch.code == -9
