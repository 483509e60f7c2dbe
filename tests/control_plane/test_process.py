"""The control plane as a process: quick to start, quick to end with streams open, cheap when idle."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.control_plane.conftest import migrated


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Control:
    """A running control plane."""

    def __init__(self, database_url: str, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = os.environ | {"EBB_DATABASE_URL": database_url}
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """Starts it (again) and waits until it is ready."""
        command = [sys.executable, "-m", "control_plane", "--port", str(self.port), "--home", str(self.home)]
        with (self.home / "control.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self._env, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(self.url + "/readyz").status_code == 200:
                    return self.process
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError((self.home / "control.log").read_text())


@pytest.fixture(scope="module")
def lasting(postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Control]:
    """One for all tests that leave it as it is: a start takes three seconds."""
    with migrated(postgres_url, template) as database_url:
        control = Control(database_url, tmp_path_factory.mktemp("lasting"))
        yield control
        control.process.kill()
        control.process.wait()


@pytest.fixture
def control(database_url: str, tmp_path: Path) -> Generator[Control]:
    """A control plane, gone after the test."""
    control = Control(database_url, tmp_path)
    yield control
    control.process.kill()
    control.process.wait()


async def test_it_ends_within_seconds_with_streams_open(control: Control, keys: Any) -> None:
    headers = keys.headers(keys.admin)
    async with httpx.AsyncClient(base_url=control.url, headers=headers, timeout=30) as client:
        async with client.stream("GET", "/api/v1/events", params={"follow": "true"}) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == ": events"
            started = time.monotonic()
            control.process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines]
        assert await asyncio.to_thread(control.process.wait, 10) == 0
        assert time.monotonic() - started < 3
        assert sum(line.startswith("id:") for line in rest) == 4  # the keys' events; the stream ended cleanly
    assert "Traceback" not in (control.home / "control.log").read_text()


def _raw(port: int, data: bytes) -> bytes:
    """All that a real socket gets for these bytes, until the server closes it."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass  # closed with bytes of ours unread; what it said before that counts
    return answer


BEGIN = b"POST /api/v1/keys HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        BEGIN + b"Host: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        BEGIN + b"Host: x\r\nContent-Length: -2\r\n\r\n{}",
        BEGIN + b"Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_the_one_error_shape(lasting: Control, data: bytes) -> None:
    head, _, body = _raw(lasting.port, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"x-request-id: " in head and b"application/json" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(lasting.url + "/healthz").status_code == 200


def test_a_second_request_cannot_hide_behind_two_lengths(lasting: Control) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    lengths = b"Host: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = _raw(lasting.port, BEGIN + lengths + hidden)
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    assert b"Content-Length and Transfer-Encoding" in answer


async def test_a_restart_leads_at_once_with_a_new_epoch(control: Control, keys: Any) -> None:
    headers = keys.headers(keys.read)

    async def epoch() -> float:
        async with httpx.AsyncClient(base_url=control.url, headers=headers) as client, asyncio.timeout(8):
            while True:
                lines = (await client.get("/metrics")).text.splitlines()
                found = next(float(line.split()[1]) for line in lines if line.startswith("ebb_control_epoch "))
                if found:
                    return found
                await asyncio.sleep(0.05)

    first = await epoch()
    control.process.kill()
    control.process.wait()
    control.start()
    assert await epoch() == first + 1


async def test_idle_it_costs_little(lasting: Control) -> None:
    process = psutil.Process(lasting.process.pid)
    await asyncio.sleep(1)
    before = process.cpu_times()
    await asyncio.sleep(5)
    after = process.cpu_times()
    share = (after.user + after.system - before.user - before.system) / 5
    print("control plane idle cpu share", share, "rss MB", process.memory_info().rss / 2**20)
    assert share < 0.04


def test_missing_settings_are_a_sentence(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("EBB_")}
    ended = subprocess.run(
        [sys.executable, "-m", "control_plane", "--home", str(tmp_path)], env=env, capture_output=True, timeout=30
    )
    assert ended.returncode == 2
    assert b"EBB_DATABASE_URL is not set" in ended.stderr and b"Traceback" not in ended.stderr
