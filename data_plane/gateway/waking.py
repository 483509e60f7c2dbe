"""Tells the control plane that an endpoint is wanted: at once, again while anyone waits, and for those who come again.

A wake may be lost with its receiver, so it is repeated. Knows nothing of lines, routes or HTTP: waking is one call it
is given, and whoever waits is a `Waiters`.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from data_plane.gateway.control import Backoff, ControlUnavailable, NoSuchEndpoint
from data_plane.wire.routes import WakeAnswer

Wake = Callable[[str, str, int, float], Coroutine[Any, Any, WakeAnswer]]
"""(endpoint id, id of the oldest waiting request, how many wait, seconds in which one that was refused comes again) ->
the control plane's answer."""


class Waiters(Protocol):
    """Those who wait for one endpoint."""

    def oldest(self) -> tuple[str, int] | None:
        """(request id of the oldest, how many); None where nobody waits."""
        ...

    def deleted(self) -> None:
        """There is no such endpoint any more."""
        ...

    def failed(self, reason: str | None) -> None:
        """It cannot start."""
        ...


class Waker:
    """All wakes under way, by endpoint id."""

    def __init__(self, wake: Wake, every_s: float) -> None:
        self._wake = wake
        self._every_s = every_s
        self._kept: dict[str, asyncio.Task[None]] = {}
        self._nudges: dict[str, asyncio.Task[None]] = {}

    def keep(self, endpoint_id: str, waiters: Waiters) -> None:
        """Wake now and repeat it while anyone waits; nothing where that is done already."""
        task = self._kept.get(endpoint_id)
        if task is None or task.done():
            self._kept[endpoint_id] = asyncio.get_running_loop().create_task(self._repeat(endpoint_id, waiters))

    def stop(self, endpoint_id: str) -> None:
        """Nobody waits any more, or it is awake."""
        task = self._kept.pop(endpoint_id, None)
        if task is not None:
            task.cancel()

    def nudge(self, endpoint_id: str, request_id: str, again_s: float) -> None:
        """Wake once for a request that waits no longer: its client was told to come again in `again_s`."""
        if endpoint_id in self._nudges:
            return

        async def once() -> None:
            try:
                await self._wake(endpoint_id, request_id, 1, again_s)
            except (ControlUnavailable, NoSuchEndpoint):  # the client was answered 503 and will ask again
                return
            finally:
                self._nudges.pop(endpoint_id, None)

        self._nudges[endpoint_id] = asyncio.get_running_loop().create_task(once())

    def close(self) -> None:
        """End them all."""
        for task in (*self._kept.values(), *self._nudges.values()):
            task.cancel()
        self._kept.clear()

    async def _repeat(self, endpoint_id: str, waiters: Waiters) -> None:
        backoff = Backoff(first_s=0.1, most_s=self._every_s)
        while (oldest := waiters.oldest()) is not None:
            pause_s = self._every_s
            try:
                answer = await self._wake(endpoint_id, *oldest, 0.0)
                backoff.reset()
            except NoSuchEndpoint:
                return waiters.deleted()
            except ControlUnavailable:  # requests wait on: the next wake, or their deadlines, settle it
                pause_s = backoff.next_s()
            else:
                if answer.state == "failed":
                    return waiters.failed(answer.reason)
            await asyncio.sleep(pause_s)
