"""When the hottest blocks of the KV cache are written to a file, and that they are found there again.

A runner that ends or parks writes what is worth most; one that lives writes what is used again and again, now and
then, in case it is killed. Knows nothing of tensors, nor of who decides that it ends.
"""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from data_plane.engine.engine import Engine, Executor
from data_plane.engine.shelf import CopyingExecutor, Kept
from data_plane.runner.engine_loop import EngineLoop
from data_plane.runner.snapshot import Snapshot, open_snapshot, write_snapshot
from data_plane.wire.fleet import SnapshotSpec

log = structlog.get_logger()

EVERY_S = 60.0
CLOSE_S = 10.0
"""For what is being written as the runner ends; an engine that failed answers nobody."""
AGAIN = 1.5
"""Uses of a block that more than one request had a use for, be it some time ago."""


class Keeping:
    """Where one runner's blocks are kept. `executor` is one that can copy; `artifact` is the digest of what it runs."""

    def __init__(self, spec: SnapshotSpec, artifact: str, executor: CopyingExecutor) -> None:
        self._path = Path(spec.path)
        self._executor = executor
        self._form = f"{artifact}, {executor.kv_form}"
        self._most = spec.most_bytes // executor.block_bytes
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self.snapshot = open_snapshot(self._path, self._form, executor.block_bytes)

    @property
    def secret(self) -> bytes | None:
        """Under which the blocks there are named: the engine must name its own so."""
        return None if self.snapshot is None else self.snapshot.secret

    def use(self, engine: Engine) -> None:
        """Before the engine's first request: it goes on from what is there."""
        if self.snapshot is not None:
            engine.use_shelf(self.snapshot)
            log.info("snapshot.opened", path=str(self._path), blocks=len(self.snapshot.kept))

    def start(self, engine: EngineLoop) -> None:
        """Begins to write now and then. In the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._live(engine), name="keeping")

    async def save(self, engine: EngineLoop, *, only_reused: bool = False) -> None:
        """Writes what is worth most, unless just that is there already. `only_reused`: not for what only one request
        had a use for. Never raises: the file only ever saves work."""
        async with self._lock:
            try:
                await self._save(engine, only_reused=only_reused)
            except OSError as error:
                log.warning("snapshot.unwritten", path=str(self._path), error=str(error))

    async def close(self) -> None:
        """No more is written now and then, and the blocks of what was being written are let go. Before the engine's."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_S)
            self._task.cancel()

    async def _live(self, engine: EngineLoop) -> None:
        steps = -1
        while not await self._closes_within(EVERY_S):
            if engine.stats.steps != steps and not engine.in_flight:
                steps = engine.stats.steps
                await self.save(engine, only_reused=True)

    async def _closes_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _save(self, engine: EngineLoop, *, only_reused: bool) -> None:
        found = await engine.do(lambda held: held.hold_hottest(self._most))
        blocks = [block for _, block in found if block is not None]
        try:
            known = frozenset[bytes]() if self.snapshot is None else self.snapshot.names
            if not known.issuperset(kept.name for kept, _ in found if not only_reused or kept.uses > AGAIN):
                await self._replace(engine, found)
        finally:
            await engine.do(lambda held: held.let_go(blocks))

    async def _replace(self, engine: EngineLoop, found: list[tuple[Kept, int | None]]) -> None:
        began = time.monotonic()
        secret = await engine.do(lambda held: held.scheduler.cache.secret)

        def write() -> tuple[int, Snapshot | None]:
            size = self._executor.block_bytes
            count = write_snapshot(self._path, self._form, secret, size, self._contents(found))
            written = open_snapshot(self._path, self._form, size)
            if written is not None and written.secret != secret:
                # another replica of the endpoint has written meanwhile: what it has is of no use here
                written.close()
                written = None
            return count, written

        count, written = await asyncio.to_thread(write)
        before, self.snapshot = self.snapshot, written
        await engine.do(lambda held: held.use_shelf(written))
        if before is not None:
            before.close()
        log.info("snapshot.written", path=str(self._path), blocks=count, seconds=round(time.monotonic() - began, 4))

    def _contents(self, found: list[tuple[Kept, int | None]]) -> Iterator[tuple[Kept, bytes | None]]:
        """Copies one after the other: all at once would take as much memory again."""
        for kept, block in found:
            if block is not None:
                yield kept, self._executor.copy_out(block)
            elif self.snapshot is not None:
                yield kept, self.snapshot.read(kept.name)


def keeping_of(spec: SnapshotSpec | None, artifact: str, executor: Executor) -> Keeping | None:
    """None where it is switched off, or the executor cannot copy a block, or not even one is wanted."""
    if spec is None or not isinstance(executor, CopyingExecutor):
        return None
    return Keeping(spec, artifact, executor) if 0 < executor.block_bytes <= spec.most_bytes else None
