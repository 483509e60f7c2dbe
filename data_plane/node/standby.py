"""Keeps runners in waiting: processes that have imported everything and become a replica's runner when claimed.

Each is started at the lowest priority, when no replica is starting, and speaks through a socket pair that only the two
have. Without an agent it ends by itself. Knows nothing of artifacts or replicas' lives.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import structlog

from data_plane.node import launch, processes
from data_plane.node.records import NodePaths, Record, save
from data_plane.wire.fleet import Assignment, RunnerStatus

log = structlog.get_logger()
READY = b"ready\n"
FLAG = "--standby"
REST_S = 1.0
"""From a claim, or the agent's own start, to the start of the next: what was just claimed shall have the machine."""
LOOK_S = 0.5
LONGEST_BACKOFF_S = 60.0
END_S = 2.0
MOST_TEXTS = 2
"""Tokenizers that one opens ahead: each takes it 15 to 50 MB."""


@dataclass(slots=True)
class Standby:
    """One that waits. `channel` is the agent's end of its standard input."""

    child: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    channel: asyncio.StreamWriter


class Standbys:
    """Owner of the waiting runners. `is_starting` says whether some replica of this node is on its way up."""

    def __init__(self, paths: NodePaths, settings: launch.RunnerSettings, is_starting: Callable[[], bool]) -> None:
        self.warm = settings.warm
        """What they import beyond the least (`standby.py` of the runner); the next one started goes by it."""
        self._paths = paths
        self._settings = settings
        self._is_starting = is_starting
        self._waiting: list[Standby] = []
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failures = 0
        self._texts: dict[Path, None] = {}

    @property
    def count(self) -> int:
        """How many wait and may be claimed."""
        return len(self._waiting)

    def start(self) -> None:
        """Begins to keep as many as the settings say."""
        if self._settings.standby and self._task is None:
            self._task = asyncio.create_task(self._keep(), name="standbys")

    def expect(self, folder: Path) -> None:
        """This artifact was started just now, and is likely to be again: the next to wait opens its tokenizer."""
        self._texts.pop(folder, None)
        self._texts[folder] = None
        while len(self._texts) > MOST_TEXTS:
            del self._texts[next(iter(self._texts))]

    def claim(self, record: Record) -> tuple[subprocess.Popen[bytes], Record] | None:
        """The process that becomes the record's runner; None where none waits. Raises OSError as `launch.spawn`.

        The record names the process before the process knows what it is for: an agent that ends in between leaves one
        that ends too.
        """
        standby = self._next()
        if standby is None:
            return None
        pid = standby.child.pid
        claimed = msgspec.structs.replace(record, pid=pid, identity=processes.identity(pid) or "gone", claimed=True)
        try:
            save(self._paths, claimed)
            line = Assignment(str(self._paths.spec(record.replica_id)), str(self._paths.log(record.replica_id)))
            standby.channel.write(msgspec.json.encode(line) + b"\n")
        except OSError:
            standby.child.kill()
            raise
        finally:
            standby.channel.close()
        return standby.child, claimed

    async def close(self) -> None:
        """Ends those that wait. What was claimed goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for standby in self._waiting:
            standby.channel.close()
        tasks = list(self._watches.values())
        await asyncio.gather(*tasks, return_exceptions=True)
        self._waiting.clear()

    def _next(self) -> Standby | None:
        while self._waiting:
            standby = self._waiting.pop(0)
            self._watches.pop(standby.child.pid).cancel()
            self._nudge.set()
            if standby.child.poll() is None:
                return standby
            standby.channel.close()
        return None

    async def _keep(self) -> None:
        await asyncio.sleep(REST_S)
        while True:
            self._nudge.clear()
            if len(self._waiting) >= self._settings.standby:
                await self._nudge.wait()
                await asyncio.sleep(REST_S)
            elif self._is_starting():
                await asyncio.sleep(LOOK_S)
            elif not await self._add():
                self._failures += 1
                await asyncio.sleep(min(LONGEST_BACKOFF_S, 2.0**self._failures))
            else:
                self._failures = 0

    async def _add(self) -> bool:
        ours, theirs = socket.socketpair()
        try:
            child = self._spawn(theirs)
        except OSError as error:
            ours.close()
            log.warning("standby.not_started", error=str(error))
            return False
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        standby = Standby(child, reader, writer)
        is_ready = False
        try:
            is_ready = await reader.readline() == READY
        finally:
            if not is_ready:
                writer.close()
                await _end(child)
        if is_ready:
            self._waiting.append(standby)
            self._watches[child.pid] = asyncio.create_task(self._watch(standby), name=f"standby {child.pid}")
            log.info("standby.ready", pid=child.pid, warm=self.warm)
        else:
            log.warning("standby.ended", pid=child.pid, code=child.returncode, log=str(self._paths.standby_log))
        return is_ready

    def _spawn(self, channel: socket.socket) -> subprocess.Popen[bytes]:
        warm = ("--warm", self.warm) if self.warm else ()
        texts = [word for folder in reversed(self._texts) for word in ("--text", str(folder))]
        command = [*self._settings.command, FLAG, *warm, *texts]
        return launch.start(command, self._paths.standby_log, self._paths.run, channel.fileno())

    async def _watch(self, standby: Standby) -> None:
        """Until it ends, which it should not: one that is claimed is watched by its replica."""
        with contextlib.suppress(OSError):  # a reset says the same as an end
            await standby.reader.read()
        if standby in self._waiting:
            self._waiting.remove(standby)
        self._watches.pop(standby.child.pid, None)
        standby.channel.close()
        await _end(standby.child)
        log.info("standby.gone", pid=standby.child.pid, code=standby.child.returncode)
        self._nudge.set()


async def _end(child: subprocess.Popen[bytes]) -> None:
    """It has been told by the end of its channel; one that imports hears it late, and is killed."""
    try:
        await asyncio.wait_for(asyncio.to_thread(child.wait, END_S), END_S + 1.0)
    except (subprocess.TimeoutExpired, TimeoutError):
        child.kill()
        child.wait()
    except asyncio.CancelledError:
        child.kill()
        child.wait()
        raise


def claimed_pid(status: Path) -> int | None:
    """The process that wrote this status, where it once was a standby: its command line names no spec."""
    try:
        pid = msgspec.json.decode(status.read_bytes(), type=RunnerStatus).pid
        process = psutil.Process(pid)
        ours = FLAG in process.cmdline() and Path(process.cwd()) == status.parent and pid == os.getsid(pid)
    except (OSError, psutil.Error, msgspec.DecodeError):
        return None  # nothing was written, or whoever wrote it is gone
    return pid if ours else None
