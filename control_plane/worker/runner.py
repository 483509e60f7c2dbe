"""Runs one job under its lease: claims it, keeps the lease by heartbeats, and gives the job back when the worker must
stop. Knows nothing of Celery."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import CHANNEL
from control_plane.db.outbox import JobTable
from control_plane.db.session import Database
from control_plane.errors import StaleEpoch
from control_plane.jobs import service
from control_plane.jobs.canary import TOPIC

PROGRESS_EVERY_S = 0.2

log = structlog.get_logger("control_plane.worker")


class JobFailed(Exception):
    """A job's own verdict. Not `fatal`: worth another attempt."""

    def __init__(self, reason: str, *, fatal: bool) -> None:
        super().__init__(reason)
        self.fatal = fatal


class RunningJob:
    """What a handler gets: the order, and the means to write while the lease holds."""

    def __init__(self, database: Database, row: JobTable, worker: str) -> None:
        self.id = row.id
        self.subject = row.subject
        self.attempt = row.attempts
        self.payload = row.payload
        self._database = database
        self._worker = worker
        self._stage = ""
        self._told_at = 0.0

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[tuple[AsyncSession, JobTable]]:
        """A transaction in which the job is surely still ours. Raises StaleEpoch."""
        async with self._database.transaction() as session:
            yield session, await service.owned(session, self.id, self._worker)

    async def progress(self, stage: str, done: int, total: int) -> None:
        """Shows progress, five times a second at most and at once for another stage. Raises StaleEpoch."""
        now = time.monotonic()
        if stage == self._stage and now - self._told_at < PROGRESS_EVERY_S:
            return
        self._stage, self._told_at = stage, now
        async with self._database.transaction() as session:
            await service.progress(session, self.id, self._worker, stage, done, total)


Handler = Callable[[RunningJob], Awaitable[None]]
"""Does the work and records its result with `service.finish`, in one transaction. Raises JobFailed."""


class JobRunner:
    """Runs jobs one at a time; `stop` gives the current one back."""

    def __init__(self, database_url: str, worker: str, handlers: Mapping[str, Handler]) -> None:
        self._database_url = database_url
        self._worker = worker
        self._handlers = handlers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._stopped = False

    def run(self, job_id: UUID) -> None:
        """Blocks until the job ended, was lost or given back; does nothing if it is not there to be claimed."""
        if not self._stopped:  # a hint that arrives after `stop` is for another worker; it is sent again
            asyncio.run(self._run(job_id))

    def answer(self, nonce: str) -> None:
        """Rings the bell that the sender of a canary waits for. Blocks."""
        try:
            with psycopg.connect(self._database_url, autocommit=True, connect_timeout=5) as connection:
                connection.execute("select pg_notify(%s, %s)", (CHANNEL, TOPIC + nonce[:64]))
        except psycopg.Error as error:
            # the database is away: whoever waits knows that better
            log.warning("canary_not_answered", error=str(error).splitlines()[:1])

    def stop(self) -> None:
        """From a signal handler or another thread: the current job is given back at once, no other is begun."""
        self._stopped = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    @property
    def idle(self) -> bool:
        """Whether no job is in work."""
        return self._loop is None

    async def _run(self, job_id: UUID) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        database = Database(self._database_url, pool_size=2)
        try:
            async with database.transaction() as session:
                row = await service.claim(session, job_id, self._worker)
            if row is None:
                # doubled, or late: someone else has it, or it has ended
                log.info("hint_ignored", job=str(job_id))
            else:
                await self._work(database, RunningJob(database, row, self._worker), row.kind)
        finally:
            self._loop = None
            await database.close()

    async def _work(self, database: Database, job: RunningJob, kind: str) -> None:
        handler = self._handlers.get(kind)
        task = asyncio.create_task(self._handle(handler, job, kind))
        beat = asyncio.create_task(self._heartbeat(database, job.id))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, beat, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
            verdict = (await asyncio.gather(task, return_exceptions=True))[0]
        finally:
            for other in (beat, stop):
                other.cancel()
            await asyncio.gather(beat, stop, return_exceptions=True)
        await self._settle(job, verdict)

    async def _handle(self, handler: Handler | None, job: RunningJob, kind: str) -> None:
        if handler is None:
            raise JobFailed(f"This worker does not know jobs of the kind '{kind}'. Update it.", fatal=True)
        await handler(job)

    async def _heartbeat(self, database: Database, job_id: UUID) -> None:
        """Ends when the job is no longer ours, or could not be shown to be for as long as a lease lasts."""
        renewed_at = time.monotonic()
        while time.monotonic() - renewed_at < service.LEASE_S:
            await asyncio.sleep(service.HEARTBEAT_S)
            asked_at = time.monotonic()
            try:
                async with database.transaction() as session:
                    await service.heartbeat(session, job_id, self._worker)
                renewed_at = asked_at
            except StaleEpoch:
                return
            except Exception as error:  # noqa: BLE001 - the database may be back before the lease runs out
                log.warning("heartbeat_failed", job=str(job_id), error=str(error).splitlines()[:1])

    async def _settle(self, job: RunningJob, verdict: BaseException | None) -> None:
        """Writes how the job ended, unless it ended well or is no longer ours."""
        if verdict is None or isinstance(verdict, StaleEpoch):
            log.info("job_ended", job=str(job.id), lost=verdict is not None)
            return
        with contextlib.suppress(StaleEpoch):  # another worker's by now: its verdict counts
            async with job.transaction() as (session, row):
                if isinstance(verdict, asyncio.CancelledError):
                    row.attempts -= 1  # stopping a worker is not the job's fault
                    await service.give_back(session, row, "Its worker was stopped.", at_once=True)
                elif isinstance(verdict, JobFailed) and verdict.fatal:
                    await service.fail(session, row, str(verdict))
                elif isinstance(verdict, JobFailed):
                    await service.give_back(session, row, str(verdict), at_once=False)
                else:
                    log.error("job_crashed", job=str(job.id), exc_info=verdict)
                    reason = f"The worker failed at it ({type(verdict).__name__}); its log has the reason."
                    await service.give_back(session, row, reason, at_once=False)


def summary(result: Any) -> dict[str, Any]:
    """What stands in a job's `result`: small values only."""
    return {name: value for name, value in result.items() if isinstance(value, str | int) and len(str(value)) <= 200}
