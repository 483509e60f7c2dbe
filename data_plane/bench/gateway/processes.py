"""The processes of a measurement: stubs and gateway started and ended with it, and what any process costs.

Knows nothing of requests.
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil

from data_plane.bench.gateway.client import TargetDown
from data_plane.bench.gateway.feeder import Feeder

START_S = 30.0


@dataclass(frozen=True)
class Cost:
    """CPU seconds so far and resident bytes now, of a process and its children."""

    cpu_s: float
    rss_bytes: int


class Watched:
    """The processes behind a port of this machine; none where it is another machine's, or not ours to look at."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids

    @classmethod
    def behind(cls, port: int) -> "Watched":
        """Whoever listens on the port now."""
        try:
            listening = psutil.net_connections("tcp")
        except psutil.Error:  # not allowed to see others' sockets: it is measured without its costs
            return cls([])
        found = {
            c.pid for c in listening if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr[1] == port and c.pid
        }
        return cls(sorted(found))

    def cost(self) -> Cost | None:
        """What they took so far; None where there are none."""
        cpu_s, rss_bytes, seen = 0.0, 0, set[int]()
        for pid in self._pids:
            try:
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
            except psutil.Error:  # ended meanwhile
                continue
            for each in family:
                if each.pid in seen:
                    continue
                seen.add(each.pid)
                try:
                    times = each.cpu_times()
                    cpu_s += times.user + times.system
                    rss_bytes += each.memory_info().rss
                except psutil.Error:  # ended meanwhile
                    continue
        return Cost(cpu_s, rss_bytes) if seen else None


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def stub_process(events: int, event_every_ms: float, replicas: int = 2) -> AsyncGenerator[list[str]]:
    """Stub replicas in a process of their own; their URLs."""
    ports = ",".join(["0"] * replicas)
    arguments = ("stub", "--ports", ports, "--events", str(events), "--event-every-ms", str(event_every_ms))
    async with _child("data_plane.bench", *arguments, stdout=asyncio.subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                line = await child.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise TargetDown("The stub replicas did not start; what they said is above.")
        yield json.loads(line)["urls"]


@asynccontextmanager
async def gateway_process(replica_urls: list[str]) -> AsyncGenerator[tuple[str, str]]:
    """A gateway of ours before the replicas, with the least control plane there is; its URL and a key."""
    feeder = Feeder(replica_urls)
    await feeder.start()
    port = free_port()
    try:
        with tempfile.TemporaryFile() as log:
            arguments = ("--control", feeder.url, "--port", str(port), "--name", "bench", "--drain", "1")
            environment = {**os.environ, "EBB_NODE_KEY": feeder.node_key}
            async with _child("data_plane.gateway", *arguments, environment=environment, stderr=log.fileno()) as child:
                if not await _listens(port, child):
                    log.seek(0)
                    raise TargetDown(f"The gateway did not start: {log.read().decode(errors='replace')[-2000:]}")
                yield f"http://127.0.0.1:{port}", feeder.key
    finally:
        await feeder.stop()


async def _listens(port: int, child: asyncio.subprocess.Process) -> bool:
    """Whether the process says within START_S that it is ready."""
    question = b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    deadline = asyncio.get_running_loop().time() + START_S
    while asyncio.get_running_loop().time() < deadline and child.returncode is None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(question)
            answer = await reader.read(4096)
            writer.close()
        except OSError:  # not yet
            answer = b""
        if answer.startswith(b"HTTP/1.1 200"):
            return True
        await asyncio.sleep(0.05)
    return False


@asynccontextmanager
async def _child(
    module: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> AsyncGenerator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments), env=environment, stdout=stdout, stderr=stderr
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                async with asyncio.timeout(10):
                    await child.wait()
            except TimeoutError:  # it had its time to leave
                child.kill()
                await child.wait()
