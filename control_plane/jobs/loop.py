"""The loop over jobs: queues again what a dead worker left, and tells workers of what is queued. Knows no kind of
job."""

import asyncio
from typing import Protocol
from uuid import UUID

from control_plane.db.loop import Leadership
from control_plane.jobs import service
from control_plane.settings import Settings


class Publisher(Protocol):
    """Whatever can tell a worker of a job; may block, may raise."""

    def publish(self, job_id: UUID) -> None:
        """Sends one hint."""
        ...


class LazyHints:
    """Hints by Celery, which is imported with the first of them: it would take a third of the time to start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._publisher: Publisher | None = None

    def publish(self, job_id: UUID) -> None:
        """Sends one hint; blocks."""
        if self._publisher is None:
            from control_plane.jobs.broker import Hints

            self._publisher = Hints(self._settings)
        self._publisher.publish(job_id)


class JobsLoop:
    """Ticks on the bell `jobs`, and when a lease runs out."""

    name = "jobs"
    topics = ("jobs",)
    interval_s = 5.0

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def tick(self, leadership: Leadership) -> float | None:
        """Hints leave after the commit; one that is lost is sent again by a later tick."""
        async with leadership.transaction() as session:
            await service.requeue_lost(session)
            due = await service.take_hints(session)
            next_s = await service.next_look_s(session)
        for job_id in due:
            await asyncio.to_thread(self._publisher.publish, job_id)
        return next_s
