"""The Celery application: where hints go out and come in. JSON only; no results. Knows no table and no kind of job."""

import random
from functools import cached_property
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue
from redis.exceptions import OutOfMemoryError

from control_plane.settings import Settings

RUN = "ebb.jobs.run"
CANARY = "ebb.canary"
CANARY_EXPIRES_S = 30.0
QUEUE = "ebb"


class _Connection(Connection):
    """Comes back soon. Celery's own waits 2, 4, 6 … 30 s between tries: a broker that was away for half a minute would
    be away for a whole one."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """As kombu's, with other pauses."""
        most_s = 3.0 * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        return super().ensure_connection(
            *args, **{**options, "interval_start": 0.3, "interval_step": 0.3, "interval_max": most_s}
        )

    @cached_property
    def connection_errors(self) -> tuple[type[Exception], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As kombu's, and a Redis that is full: a worker would end of that, where it can as well come back later."""
        return (*super().connection_errors, OutOfMemoryError)


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
        broker_connection_max_retries=None,
        broker_heartbeat=0,
        event_queue_exclusive=True,
        broker_transport_options=_transport_options(settings),
    )
    app.amqp.Connection = _Connection
    if settings.broker_url.startswith(("amqp://", "amqps://")):
        app.conf.task_default_queue_type = "quorum"
        app.conf.worker_detect_quorum_queues = True
    else:
        # An acknowledgement that fails with its connection is never made good: a worker that takes one message at a
        # time would wait for it for ever, and take no other. A hint needs none.
        app.conf.task_queues = [Queue(QUEUE, no_ack=True)]
    return app


class Hints:
    """Tells workers of jobs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = make_celery(settings)

    def publish(self, job_id: UUID) -> None:
        """Sends one hint; blocks for the broker's answer, a few seconds at most where it is down."""
        self._send(RUN, str(job_id), None)

    def canary(self, nonce: str) -> None:
        """Sends one canary, likewise; a worker that is away will not find a heap of them."""
        self._send(CANARY, nonce, CANARY_EXPIRES_S)

    def _send(self, task: str, argument: str, expires_s: float | None) -> None:
        try:
            self._app.send_task(task, args=[argument], retry=False, expires=expires_s)
        except Exception:
            # its connections may be dead, and are not looked at before they are used again: begun anew
            self._app.close()
            self._app = make_celery(self._settings)
            raise

    def close(self) -> None:
        """Closes the connections to the broker."""
        self._app.close()


def _transport_options(settings: Settings) -> dict[str, Any]:
    if not settings.broker_url.startswith("filesystem:"):
        bounds = {"socket_connect_timeout": 5, "socket_timeout": 10, "socket_keepalive": True}
        return bounds if settings.broker_url.startswith("redis") else {}
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
