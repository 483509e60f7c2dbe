"""The Celery application: where hints go out and come in. JSON only; no results. Knows no table and no kind of job."""

from typing import Any
from uuid import UUID

from celery import Celery

from control_plane.settings import Settings

RUN = "ebb.jobs.run"
QUEUE = "ebb"


def make_celery(settings: Settings) -> Celery:
    """The application for `settings.broker_url`; makes the folders of the filesystem broker."""
    app = Celery("ebb", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        # a message is a hint: the jobs table hints again, so nothing is gained by giving one back
        task_acks_late=False,
        task_default_queue=QUEUE,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_heartbeat=0,
        event_queue_exclusive=True,
        broker_transport_options=_transport_options(settings),
    )
    if settings.broker_url.startswith(("amqp://", "amqps://")):
        app.conf.task_default_queue_type = "quorum"
        app.conf.worker_detect_quorum_queues = True
    return app


class Hints:
    """Tells workers of jobs."""

    def __init__(self, settings: Settings) -> None:
        self._app = make_celery(settings)

    def publish(self, job_id: UUID) -> None:
        """Sends one hint; blocks for the broker's answer, a few seconds at most where it is down."""
        self._app.send_task(RUN, args=[str(job_id)], retry=False)

    def close(self) -> None:
        """Closes the connections to the broker."""
        self._app.close()


def _transport_options(settings: Settings) -> dict[str, Any]:
    if not settings.broker_url.startswith("filesystem:"):
        return {"socket_connect_timeout": 5} if settings.broker_url.startswith("redis") else {}
    messages, control = settings.broker_dir / "messages", settings.broker_dir / "control"
    for folder in (messages, control):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        # one folder in and out: writer and reader are processes of the same machine
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": 0.05,
    }
