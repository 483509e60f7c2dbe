"""Whether a ready runner still answers: one that hangs holds its device for nothing, and nobody else ends it.

Knows nothing of processes; what follows is for the replica's owner to do.
"""

import asyncio
import time

from data_plane.router.probe import probe
from data_plane.wire.routes import ReplicaRoute

CONNECT_S = 2.0
EVERY_S = 10.0
"""A question costs about a millisecond of both."""


class Pulse:
    """Asks now and then, one question at a time. `hang_s` without any sign makes `is_hung` true."""

    def __init__(self, hang_s: float) -> None:
        self._hang_s = hang_s
        self._every_s = min(EVERY_S, hang_s / 3)
        self._answer_s = min(CONNECT_S, hang_s / 3)
        self._asked_at = 0.0
        self._mute_since: float | None = None
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_hung(self) -> bool:
        """Whether it has given no sign for too long."""
        return self._mute_since is not None and time.monotonic() - self._mute_since > self._hang_s

    def feel(self, runner: ReplicaRoute) -> None:
        """Ask again, if it is time to. Call it as often as you like."""
        now = time.monotonic()
        # one that gave no sign is asked again at once
        every_s = self._every_s if self._mute_since is None else 0.0
        if (self._asking is None or self._asking.done()) and now - self._asked_at >= every_s:
            self._asked_at = now
            self._asking = asyncio.get_running_loop().create_task(self._ask(runner), name=f"pulse {runner.id}")

    def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self, runner: ReplicaRoute) -> None:
        began = time.monotonic()
        # refused or unreachable: then it is ending or this machine is in trouble, which its process tells better
        if await probe(runner, CONNECT_S, self._answer_s) not in ("silent", "stuck"):
            self._mute_since = None
        elif self._mute_since is None:
            self._mute_since = began
