"""A recorded process is found again only if it is the very same one, and a stopped one leaves no group behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from control_plane.embedded.records import ProcessRecord, SupervisorRecord, read_record, record_of, stop_processes

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_recycled_pid_is_not_ours() -> None:
    own = record_of("me", os.getpid())
    assert own.is_alive()
    assert not ProcessRecord("me", own.pid, own.created_at - 100).is_alive()


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = record_of("child", process.pid)
    assert record.is_alive()
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not record.is_alive()
    process.wait()


def test_what_ignores_sigterm_is_killed_with_its_group() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert process.stdout is not None
    grandchild = psutil.Process(int(process.stdout.readline()))
    stop_processes([record_of("stubborn", process.pid)], grace_s=0.2)
    assert process.wait(10) == -signal.SIGKILL
    psutil.wait_procs([grandchild], timeout=10)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_a_record_comes_back(tmp_path: Path) -> None:
    record = SupervisorRecord(
        ProcessRecord("supervisor", 1, 2.5), "http://c", "http://g", True, (ProcessRecord("gateway", 3, 4.5),)
    )
    record.write(tmp_path / "supervisor.json")
    assert read_record(tmp_path / "supervisor.json") == record


@pytest.mark.parametrize("text", ["", "{", "[]", '{"supervisor": {}}'])
def test_a_record_that_was_cut_short_names_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "supervisor.json").write_text(text)
    assert read_record(tmp_path / "supervisor.json") is None
    assert read_record(tmp_path / "absent.json") is None
