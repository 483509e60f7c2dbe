"""Sends a message now and then that a worker answers by ringing a bell: how long that takes is how the broker and its
workers fare. Knows nothing of jobs."""

import time
from typing import Protocol
from uuid import uuid4

import structlog

from control_plane.db import metrics
from control_plane.db.bells import Bells
from control_plane.db.loop import Leadership
from control_plane.jobs.sender import Sender

EVERY_S = 60.0
LOST_S = 30.0
"""A canary that has not come back after so long is followed by another."""
TOPIC = "canary:"

log = structlog.get_logger("control_plane.canary")


class CanaryPublisher(Protocol):
    """Whatever can send one; may block, may raise."""

    def canary(self, nonce: str) -> None:
        """Sends one; whoever takes it rings `TOPIC` + nonce."""
        ...


class CanaryLoop:
    """One at a time. The lag grows from the first canary that is not answered until one is."""

    name = "canary"
    topics: tuple[str, ...] = ()

    def __init__(
        self,
        publisher: CanaryPublisher,
        sender: Sender,
        bells: Bells,
        *,
        every_s: float = EVERY_S,
        lost_s: float = LOST_S,
    ) -> None:
        self.interval_s = every_s
        self._lost_s = lost_s
        self._publisher = publisher
        self._sender = sender
        self._bells = bells
        self._led: Leadership | None = None
        self._unanswered_since: float | None = None
        self._lag_s = 0.0
        metrics.BROKER_LAG.set_function(self.lag_s)

    def lag_s(self) -> float:
        """Seconds that the last one took, or since the first that has not come back."""
        if self._unanswered_since is None:
            return self._lag_s
        return max(self._lag_s, time.monotonic() - self._unanswered_since)

    async def tick(self, leadership: Leadership) -> float | None:
        """Sends one and waits for it; the first an interval after the lead was taken: Celery is slow to import."""
        if leadership is not self._led:
            self._led, self._unanswered_since = leadership, None
            return None
        nonce = uuid4().hex
        self._unanswered_since = self._unanswered_since or time.monotonic()
        with self._bells.listen(TOPIC + nonce) as listener:
            try:
                await self._sender.send(lambda: self._publisher.canary(nonce))
            except Exception as error:  # noqa: BLE001 - brokers fail in many ways, and the lag tells of all of them
                log.warning("canary_not_sent", error=str(error).splitlines()[:1])
                return min(self._lost_s, self.interval_s)
            came = await listener.wait(self._lost_s)
        if listener.closing:
            return None
        if not came:
            log.info("canary_lost", waited_s=round(self.lag_s(), 1))
            return 0.0
        self._lag_s = time.monotonic() - self._unanswered_since
        if self._lag_s > self._lost_s:
            log.info("canary_back", lag_s=round(self._lag_s, 1))
            self._lag_s, self._unanswered_since = 0.0, None
            return 0.0  # what it took includes the outage: another one says how things are now
        self._unanswered_since = None
        return None
