"""Runs the control plane's loops, while and only while this process holds the lease. Knows a loop's rhythm and nothing
of what it does."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db import lease, metrics
from control_plane.db.backoff import pause_s
from control_plane.db.bells import Bells
from control_plane.db.session import Database
from control_plane.errors import StaleEpoch

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0

log = structlog.get_logger("control_plane.loops")


class Leadership:
    """What a tick gets: transactions that are refused once another process leads.

    `recovered`: the database's history, where a standby has taken over that may lack what was written last. Rows are
    then no proof that something is *not* there, before those who know have been heard.
    """

    def __init__(
        self,
        database: Database,
        epoch: int,
        *,
        holder: str | None = None,
        expiry_s: float = lease.EXPIRY_S,
        recovered: lease.History | None = None,
    ) -> None:
        self.database = database
        self.epoch = epoch
        self.recovered = recovered
        self._holder = holder
        self._expiry_s = expiry_s

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """A transaction fenced by the epoch; raises StaleEpoch where this process no longer leads."""
        async with self.database.transaction() as session:
            await lease.fence(session, self.epoch, holder=self._holder, expiry_s=self._expiry_s)
            yield session


class Loop(Protocol):
    """Observe, decide, apply; may be stopped at any point and started again anywhere."""

    @property
    def name(self) -> str:
        """For logs."""
        ...

    @property
    def topics(self) -> tuple[str, ...]:
        """Bells that make it tick at once."""
        ...

    @property
    def interval_s(self) -> float:
        """Longest time between two ticks."""
        ...

    async def tick(self, leadership: Leadership) -> float | None:
        """One round. May return seconds until the next one, where that is sooner than `interval_s`."""
        ...


class Leader:
    """Takes the lease, renews it, and runs `loops` as long as it holds."""

    def __init__(
        self,
        database: Database,
        bells: Bells,
        instance: str,
        loops: Sequence[Loop],
        *,
        renew_s: float = lease.RENEW_S,
        expiry_s: float = lease.EXPIRY_S,
    ) -> None:
        self.epoch: int | None = None
        self._highest = 0
        self._timeline: int | None = None
        self._database = database
        self._bells = bells
        self._instance = instance
        self._loops = loops
        self._renew_s = renew_s
        self._expiry_s = expiry_s
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    def start(self) -> None:
        """Begins to try for the lease."""
        self._task = asyncio.create_task(self._run(), name="leader")

    async def stop(self) -> None:
        """Ends the loops, then gives the lease back so that another process leads at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.epoch is not None:
            with contextlib.suppress(Exception):  # it expires by itself where the database is already gone
                async with asyncio.timeout(1), self._database.transaction() as session:
                    await lease.release(session, self._instance, self.epoch)

    async def _run(self) -> None:
        while True:
            epoch = await self._try_acquire()
            if epoch is None:
                await asyncio.sleep(pause_s(1, self._renew_s, self._renew_s))
                continue
            history = await self._history()
            taken_over = history is not None and (history.is_another or self._timeline not in (None, history.timeline))
            recovered = history if taken_over else None
            self._highest, self._timeline = epoch, None if history is None else history.timeline
            log.info("leading", instance=self._instance, epoch=epoch, timeline=self._timeline)
            if recovered is not None:
                metrics.FAILOVERS.inc()
                log.error("database_taken_over", timeline=recovered.timeline, before=recovered.known)
            self.epoch = epoch
            self._lost.clear()
            await self._lead(
                Leadership(self._database, epoch, holder=self._instance, expiry_s=self._expiry_s, recovered=recovered)
            )
            self.epoch = None
            log.warning("leadership_lost", instance=self._instance, epoch=epoch)

    async def _try_acquire(self) -> int | None:
        try:
            async with self._database.transaction() as session:
                return await lease.acquire(session, self._instance, expiry_s=self._expiry_s, above=self._highest)
        except Exception as error:  # noqa: BLE001 - whatever keeps the database from answering, the next try is the remedy
            log.warning("lease_unreachable", error=str(error).splitlines()[:1])
            return None

    async def _history(self) -> lease.History | None:
        try:
            async with self._database.transaction() as session:
                return await lease.history(session)
        except Exception as error:  # noqa: BLE001 - some hosted servers have no such functions: then nobody can say
            log.warning("history_unknown", error=str(error).splitlines()[:1])
            return None

    async def _was_taken_over(self) -> bool:
        """Whether the database is another server than when this process began to lead, as far as can be known."""
        if self._timeline is None:
            return False
        history = await self._history()
        return history is not None and history.timeline != self._timeline

    async def _lead(self, leadership: Leadership) -> None:
        tasks = [asyncio.create_task(self._loop(loop, leadership), name=loop.name) for loop in self._loops]
        try:
            await self._renew_until_lost(leadership.epoch)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew_until_lost(self, epoch: int) -> None:
        clock = asyncio.get_running_loop().time
        valid_until = clock() + self._expiry_s
        while clock() < valid_until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._renew_s):
                    await self._lost.wait()
                return
            asked_at = clock()
            try:
                async with self._database.transaction() as session:
                    if not await lease.renew(session, self._instance, epoch, expiry_s=self._expiry_s):
                        return
                valid_until = asked_at + self._expiry_s
            except Exception as error:  # noqa: BLE001 - tried again until the lease has run out
                log.warning("lease_renewal_failed", error=str(error).splitlines()[:1])
                continue
            if await self._was_taken_over():
                return

    async def _loop(self, loop: Loop, leadership: Leadership) -> None:
        failures = 0
        with self._bells.listen(*loop.topics) as listener:
            while not listener.closing:
                try:
                    sooner_s = await loop.tick(leadership)
                except StaleEpoch:
                    metrics.STALE.labels("lease").inc()
                    self._lost.set()
                    return
                except Exception as error:  # a loop that ended would leave all to drift: told, then tried again
                    failures += 1
                    wait_s = pause_s(failures, FIRST_BACKOFF_S, MAX_BACKOFF_S)
                    log.error("tick_failed", loop=loop.name, wait_s=round(wait_s, 3), exc_info=error)
                    await asyncio.sleep(wait_s)
                    continue
                failures = 0
                await listener.wait(loop.interval_s if sooner_s is None else min(sooner_s, loop.interval_s))
