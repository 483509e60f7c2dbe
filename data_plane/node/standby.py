"""Keeps runners in waiting: processes that have imported everything and become a replica's runner when claimed.

Each speaks through a socket pair that only the two have; without an agent it ends by itself. Where that can be they are
forks of one template, made within milliseconds, if need be when they are claimed. Else each imports for itself, at the
lowest priority and when no replica is starting. Knows nothing of artifacts or replicas' lives.
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
from data_plane.node.template import READY, Template, end
from data_plane.wire.fleet import Assignment, RunnerStatus

log = structlog.get_logger()
FLAG = "--standby"
REST_S = 1.0
"""From a claim, or the agent's own start, to the start of the next: what was just claimed shall have the machine."""
FORK_REST_S = 0.2
"""The same where it is a fork."""
LOOK_S = 0.5
LONGEST_BACKOFF_S = 60.0
MOST_TEXTS = 2
"""Tokenizers that one opens ahead: each takes it 15 to 50 MB."""


@dataclass(slots=True)
class Standby:
    """One that waits. `channel` is the agent's end of its standard input."""

    child: processes.Child
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
        self._template: Template | None = None

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

    def claim(self, record: Record) -> tuple[processes.Child, Record] | None:
        """The process that becomes the record's runner; None where none waits. Raises OSError as `launch.spawn`.

        The record names the process before the process knows what it is for: an agent that ends in between leaves one
        that ends too.
        """
        if (standby := self._next()) is not None:
            child, tell, close = standby.child, standby.channel.write, standby.channel.close
        elif (forked := self._fork()) is not None:
            child, tell, close = forked[0], forked[1].sendall, forked[1].close
        else:
            return None
        claimed = msgspec.structs.replace(
            record, pid=child.pid, identity=processes.identity(child.pid) or "gone", claimed=True
        )
        try:
            save(self._paths, claimed)
            line = Assignment(str(self._paths.spec(record.replica_id)), str(self._paths.log(record.replica_id)))
            tell(msgspec.json.encode(line) + b"\n")
        except OSError:
            child.kill()
            raise
        finally:
            close()
        return child, claimed

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
        await self._drop_template()

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
                await asyncio.sleep(FORK_REST_S if self._template is not None else REST_S)
            elif self._is_starting() and self._template is None:
                await asyncio.sleep(LOOK_S)
            elif not await (self._add_fork() if self._can_fork else self._add()):
                self._failures += 1
                await asyncio.sleep(min(LONGEST_BACKOFF_S, 2.0**self._failures))
            else:
                self._failures = 0

    @property
    def _can_fork(self) -> bool:
        # a CUDA context does not outlive a fork
        return self._settings.forks and not self.warm.startswith("cuda")

    async def _add_fork(self) -> bool:
        try:
            template = await self._template_of_now()
            texts = tuple(str(folder) for folder in reversed(self._texts))
            if texts != template.texts and not self._is_starting():
                await template.prepare(texts)
            forked = self._fork()
        except OSError as error:
            log.warning("template.ended", error=str(error), log=str(self._paths.standby_log))
            await self._drop_template()
            return False
        if forked is None:
            await self._drop_template()
            return False
        reader, writer = await asyncio.open_unix_connection(sock=forked[1])
        self._wait_with(Standby(forked[0], reader, writer))
        return True

    async def _template_of_now(self) -> Template:
        if self._template is not None and self._template.warm != self.warm:
            await self._drop_template()
        if self._template is None:
            command, standby_log = self._settings.command, self._paths.standby_log
            self._template = await Template.start(command, standby_log, self._paths.run, self.warm)
        return self._template

    async def _drop_template(self) -> None:
        template, self._template = self._template, None
        if template is not None:
            await template.close()

    def _fork(self) -> tuple[processes.Forked, socket.socket] | None:
        if self._template is None or not self._template.is_free:
            return None
        try:
            return self._template.fork()
        except OSError as error:
            log.warning("template.not_forked", error=str(error), log=str(self._paths.standby_log))
            return None

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
        is_ready = False
        try:
            is_ready = await reader.readline() == READY
        finally:
            if not is_ready:
                writer.close()
                await end(child)
        if is_ready:
            self._wait_with(Standby(child, reader, writer))
        else:
            log.warning("standby.ended", pid=child.pid, code=child.returncode, log=str(self._paths.standby_log))
        return is_ready

    def _wait_with(self, standby: Standby) -> None:
        pid = standby.child.pid
        self._waiting.append(standby)
        self._watches[pid] = asyncio.create_task(self._watch(standby), name=f"standby {pid}")
        log.info("standby.ready", pid=pid, warm=self.warm)

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
        await end(standby.child)
        log.info("standby.gone", pid=standby.child.pid, code=standby.child.returncode)
        self._nudge.set()


def claimed_pid(status: Path) -> int | None:
    """The process that wrote this status, where it once was a standby: its command line names no spec."""
    try:
        pid = msgspec.json.decode(status.read_bytes(), type=RunnerStatus).pid
        process = psutil.Process(pid)
        ours = FLAG in process.cmdline() and Path(process.cwd()) == status.parent and pid == os.getsid(pid)
    except (OSError, psutil.Error, msgspec.DecodeError):
        return None  # nothing was written, or whoever wrote it is gone
    return pid if ours else None
