"""The Celery tasks, one line each. Knows nothing of what a job does."""

from uuid import UUID

from celery import Celery

from control_plane.jobs.broker import CANARY, RUN
from control_plane.worker.runner import JobRunner


def register(app: Celery, runner: JobRunner) -> None:
    """Adds the tasks to `app`."""

    def canary(nonce: str) -> None:
        runner.answer(nonce)

    def run(job_id: str) -> None:
        runner.run(UUID(job_id))

    app.task(name=RUN)(run)
    app.task(name=CANARY)(canary)
