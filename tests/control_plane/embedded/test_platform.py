"""The real process tree of `ebb up`: ready means ready, every part survives kill -9, and nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from control_plane.embedded import probes
from control_plane.embedded.home import Home
from control_plane.embedded.records import SupervisorRecord, read_record

EBB = (sys.executable, "-m", "control_plane.cli.main")
PARTS = {"postgres", "control", "gateway", "node", "worker"}
pytestmark = pytest.mark.timeout(300)


class Platform:
    """A platform in a scratch home, by its command line."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "home")
        self.ports = (free_port(), free_port())

    def up(self) -> subprocess.CompletedProcess[str]:
        ports = ("--port", str(self.ports[0]), "--gateway-port", str(self.ports[1]))
        return self.ebb("up", *ports, "--detach", "-o", "json")

    def ebb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("EBB_")}
        command = [*EBB, *arguments, "--home", str(self.home.root)]
        return subprocess.run(command, capture_output=True, text=True, timeout=150, env=env, check=False)

    def record(self) -> SupervisorRecord:
        record = read_record(self.home.supervisor)
        assert record is not None
        return record

    def processes(self) -> list[psutil.Process]:
        """Every process that has this home in its arguments or is a child of one that has."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if str(self.home.root) in " ".join(process.cmdline()) and process.pid != os.getpid():
                    found |= {p.pid: p for p in (process, *process.children(recursive=True))}
            except psutil.Error:
                continue
        return list(found.values())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def until(check: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def platform(short_tmp: Path) -> Iterator[Platform]:
    platform = Platform(short_tmp)
    yield platform
    stopped = platform.ebb("down")
    assert stopped.returncode == 0, stopped.stderr
    assert platform.processes() == []


def test_ready_is_ready_and_state_is_kept(platform: Platform) -> None:
    first = platform.up()
    assert first.returncode == 0, first.stderr
    credentials = json.loads(first.stdout)
    assert set(credentials) == {"control", "gateway", "key"}
    assert json.loads(platform.home.credentials.read_text()) == credentials
    assert platform.home.credentials.stat().st_mode & 0o777 == 0o600
    assert probes.is_ready(credentials["control"]) and probes.is_ready(credentials["gateway"])
    assert {child.name for child in platform.record().children} == PARTS

    again = platform.up()
    assert again.returncode == 1
    assert f"pid {platform.record().supervisor.pid}" in again.stderr and credentials["control"] in again.stderr

    made = platform.ebb("keys", "create", "kept")
    assert made.returncode == 0, made.stderr
    assert platform.ebb("down").returncode == 0
    assert platform.processes() == []
    assert platform.ebb("ps").returncode == 1

    second = platform.up()
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout) == credentials
    names = [key["name"] for key in json.loads(platform.ebb("keys", "ls", "-o", "json").stdout)]
    assert "kept" in names


def test_every_part_survives_kill_9(platform: Platform) -> None:
    assert platform.up().returncode == 0
    before = {child.name: child.pid for child in platform.record().children}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        now = {child.name: child.pid for child in platform.record().children}
        return set(now) == PARTS and all(now[name] != pid for name, pid in before.items())

    until(back)
    until(lambda: probes.is_ready(platform.record().control) and probes.is_ready(platform.record().gateway))
    until(lambda: platform.ebb("nodes", "-o", "json").returncode == 0)


def test_what_a_killed_supervisor_left_is_taken_over_or_stopped(platform: Platform) -> None:
    assert platform.up().returncode == 0
    record = platform.record()
    os.kill(record.supervisor.pid, signal.SIGKILL)
    until(lambda: not record.supervisor.is_alive())
    assert all(child.is_alive() for child in record.children)
    again = platform.up()
    assert again.returncode == 0, again.stderr
    assert not any(child.is_alive() for child in record.children)
    os.kill(platform.record().supervisor.pid, signal.SIGKILL)
    assert platform.ebb("down").returncode == 0
    assert platform.processes() == []


def test_a_port_in_use_is_said_and_nothing_is_left(platform: Platform) -> None:
    with socket.create_server(("127.0.0.1", platform.ports[1])):
        refused = platform.up()
    assert refused.returncode == 1
    assert f"Port {platform.ports[1]} is in use" in refused.stderr and "--gateway-port" in refused.stderr
    assert platform.processes() == []


def test_a_database_that_cannot_be_reached_is_said_without_its_password(platform: Platform) -> None:
    env = {**os.environ, "EBB_DATABASE_URL": f"postgresql://u:hidden@127.0.0.1:{free_port()}/x"}
    command = [*EBB, "up", "--detach", "--home", str(platform.home.root)]
    command += ["--port", str(platform.ports[0]), "--gateway-port", str(platform.ports[1])]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert refused.returncode == 1
    assert "cannot be reached" in refused.stderr and "EBB_DATABASE_URL" in refused.stderr
    assert "hidden" not in refused.stderr
    assert platform.processes() == []


def test_ctrl_c_stops_everything(platform: Platform) -> None:
    ports = ("--port", str(platform.ports[0]), "--gateway-port", str(platform.ports[1]))
    command = [*EBB, "up", *ports, "-o", "json", "--home", str(platform.home.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["key"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert "Traceback" not in errors
    assert process.returncode == 0
    assert platform.processes() == []
