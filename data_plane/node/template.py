"""One process that has everything imported and forks runners in waiting: what takes each of them a second otherwise
takes a fork some milliseconds, and it shares the memory of what was imported. Knows nothing of replicas.

What it does stands in `data_plane/runner/standby.py`.
"""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from data_plane.node import launch, processes
from data_plane.wire.fleet import TemplateOrder

FLAGS = ("--standby", "--template")
READY = b"ready\n"
LONGEST_WORD = 64
FORK_S = 0.5
"""A fork takes 5 ms; one that takes so long is not waited for, because nothing else happens here meanwhile."""
END_S = 2.0


class Template:
    """Owner of the process. `start` makes one."""

    def __init__(self, child: subprocess.Popen[bytes], channel: socket.socket, warm: str) -> None:
        self.warm = warm
        self.texts: tuple[str, ...] = ()
        self._child = child
        self._channel = channel
        self._is_busy = self._has_failed = False

    @classmethod
    async def start(cls, command: Sequence[str], log: Path, folder: Path, warm: str) -> "Template":
        """Once it has imported everything, which takes it a second or few. OSError where it cannot be started."""
        if not processes.take_orphans():
            raise OSError("this system does not give forks of forks a new parent")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                warmth = ("--warm", warm) if warm else ()
                child = launch.start([*command, *FLAGS, *warmth], log, folder, theirs.fileno())
            except OSError:
                ours.close()
                raise
        template = cls(child, ours, warm)
        try:
            await template._until_ready()
        except BaseException:  # cancelled, too: it must not be left behind
            await template.close()
            raise
        return template

    @property
    def is_free(self) -> bool:
        """Whether it would fork at once. One that has failed to once is not asked again."""
        return not (self._is_busy or self._has_failed) and self._child.poll() is None

    async def prepare(self, texts: tuple[str, ...]) -> None:
        """What it forks from now on has the tokenizers of these artifacts open. OSError where it is gone."""
        self._is_busy = True
        try:
            self._channel.send(msgspec.json.encode(TemplateOrder(texts)))
            await self._until_ready()
            self.texts = texts
        finally:
            self._is_busy = False

    def fork(self) -> tuple[processes.Forked, socket.socket]:
        """A runner in waiting, and this end of its standard input. While it is free. OSError where that fails."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._channel, [msgspec.json.encode(TemplateOrder())], [theirs.fileno()])
            ours.settimeout(FORK_S)
            word, _, pid = ours.recv(LONGEST_WORD).strip().partition(b" ")
            if word != READY.strip() or not pid.isdigit():
                raise OSError("the template did not fork")
            ours.setblocking(False)
        except OSError:
            self._has_failed = True
            ours.close()
            raise
        return processes.Forked(int(pid)), ours

    async def close(self) -> None:
        """Ends it; what it has forked goes on."""
        self._channel.close()
        await end(self._child)

    async def _until_ready(self) -> None:
        if await asyncio.get_running_loop().sock_recv(self._channel, LONGEST_WORD) != READY:
            raise OSError("it ended; its log says why")


async def end(child: processes.Child) -> None:
    """It has been told by the end of its channel; one that imports hears it late, and is killed."""
    try:
        await asyncio.wait_for(asyncio.to_thread(child.wait, END_S), END_S + 1.0)
    except (subprocess.TimeoutExpired, TimeoutError):
        _kill(child)
    except asyncio.CancelledError:
        _kill(child)
        raise


def _kill(child: processes.Child) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        child.kill()
    child.wait()
