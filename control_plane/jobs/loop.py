"""The loop over jobs: queues again what a dead worker left, and tells workers of what is queued. Knows no kind of
job."""

from functools import partial
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import structlog

from control_plane.db import metrics
from control_plane.db.backoff import pause_s
from control_plane.db.loop import Leadership
from control_plane.jobs import service
from control_plane.jobs.sender import Sender
from control_plane.settings import Settings

if TYPE_CHECKING:
    from control_plane.jobs.broker import Hints

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0

log = structlog.get_logger("control_plane.jobs")


class Publisher(Protocol):
    """Whatever can tell a worker of a job; may block, may raise."""

    def publish(self, job_id: UUID) -> None:
        """Sends one hint."""
        ...


class LazyHints:
    """Hints by Celery, which is imported with the first of them: it would take a third of the time to start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._publisher: Hints | None = None

    def publish(self, job_id: UUID) -> None:
        """Sends one hint; blocks."""
        self._hints().publish(job_id)

    def canary(self, nonce: str) -> None:
        """Sends one canary; blocks."""
        self._hints().canary(nonce)

    def _hints(self) -> "Hints":
        if self._publisher is None:
            from control_plane.jobs.broker import Hints

            self._publisher = Hints(self._settings)
        return self._publisher


class JobsLoop:
    """Ticks on the bell `jobs`, and when a lease runs out."""

    name = "jobs"
    topics = ("jobs",)
    interval_s = 5.0

    def __init__(self, publisher: Publisher, sender: Sender | None = None) -> None:
        self._publisher = publisher
        self._sender = sender or Sender()
        self._failures = 0

    async def tick(self, leadership: Leadership) -> float | None:
        """Hints leave after the commit; one that is lost is sent again by a later tick."""
        async with leadership.transaction() as session:
            await service.requeue_lost(session)
            due = await service.take_hints(session)
            next_s = await service.next_look_s(session)
        unsent = await self._send(due)
        if not unsent:
            return next_s
        async with leadership.transaction() as session:
            await service.unhint(session, unsent)
        return pause_s(self._failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)

    async def _send(self, due: list[UUID]) -> list[UUID]:
        """Those that the broker did not take: after the first, the rest are not tried."""
        for index, job_id in enumerate(due):
            try:
                await self._sender.send(partial(self._publisher.publish, job_id))
            except Exception as error:  # noqa: BLE001 - brokers fail in many ways; for all of them, later is the remedy
                self._failures += 1
                metrics.UNSENT.inc(len(due) - index)
                log.warning("hints_not_sent", count=len(due) - index, error=str(error).splitlines()[:1])
                return due[index:]
        self._failures = 0 if due else self._failures
        return []
