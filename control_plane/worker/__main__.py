"""`python -m control_plane.worker --home DIR`: the worker process. Celery runs in this very process (pool solo), so
that a signal reaches the job at once and an idle worker costs next to nothing."""

import os
import sys
from uuid import uuid4

import structlog
from celery.signals import worker_ready, worker_shutting_down

from control_plane import settings as settings_module
from control_plane.catalog.artifacts import QUANTIZE
from control_plane.catalog.service import IMPORT
from control_plane.jobs.broker import make_celery
from control_plane.settings import Settings, SettingsError
from control_plane.worker.imports import import_handler, quantize_handler
from control_plane.worker.runner import JobRunner
from control_plane.worker.tasks import register
from data_plane.logs import configure_logging


def main() -> int:
    """Reads the settings and runs until SIGTERM or SIGINT; a job in work is then given back."""
    try:
        settings = settings_module.read("control_plane.worker")
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return run(settings)


def run(settings: Settings) -> int:
    """The worker with these settings, in this process, until a signal."""
    configure_logging("worker")
    log = structlog.get_logger("control_plane.worker")
    settings.home.mkdir(parents=True, exist_ok=True)
    os.chdir(settings.home)
    app = make_celery(settings)
    handlers = {IMPORT: import_handler(settings), QUANTIZE: quantize_handler(settings)}
    runner = JobRunner(settings.database_url, f"{settings.instance}-{uuid4().hex[:12]}", handlers)
    register(app, runner)

    def stop(**_: object) -> None:
        runner.stop()
        if runner.idle:
            # Celery waits up to 3 s for its broker here. Messages are hints and rows hold the truth: nothing is lost.
            os._exit(0)

    def ready(**_: object) -> None:
        log.info("worker_ready", broker=settings.broker_url.partition("://")[0])

    worker_shutting_down.connect(stop, weak=False)
    worker_ready.connect(ready, weak=False)
    worker = app.Worker(
        pool="solo",
        concurrency=1,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        task_events=False,
        optimization="fair",
        loglevel="WARNING",
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
