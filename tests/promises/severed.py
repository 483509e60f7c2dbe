"""A link to a server that can be cut as a dead cable cuts it: nothing arrives, nobody is told. Knows bytes only."""

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from types import TracebackType
from urllib.parse import urlsplit

import msgspec

from data_plane.wire.routes import ReplicaRoute


class Severable:
    """Forwards a port of its own to `url`."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._target = (where.hostname, where.port)
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fillers: list[socket.socket] = []

    async def __aenter__(self) -> "Severable":
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.setblocking(False)
        self._spawn(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in (self._listener, *self._fillers):
            one.close()

    def route(self, behind: ReplicaRoute) -> ReplicaRoute:
        """The same replica by way of this link."""
        return msgspec.structs.replace(behind, url=f"http://127.0.0.1:{self._listener.getsockname()[1]}")

    async def sever(self) -> None:
        """From now on nothing goes through; a new connection is not even refused."""
        self._whole.clear()
        self._listener.listen(0)
        # with the queue of the port full, the kernel leaves further attempts without an answer
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(self._listener.getsockname())
            self._fillers.append(filler)

    async def heal(self) -> None:
        """All goes through again."""
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self._listener.listen(100)
        self._whole.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._whole.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):  # so that a cut is heeded soon
                    peer, _ = await loop.sock_accept(self._listener)
                    self._spawn(self._join(peer))

    async def _join(self, peer: socket.socket) -> None:
        near_reader, near_writer = await asyncio.open_connection(sock=peer)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(near_reader, far_writer))
                both.create_task(self._pump(far_reader, near_writer))
        finally:
            near_writer.close()
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                await self._whole.wait()
                writer.write(piece)
                await writer.drain()
        writer.close()
