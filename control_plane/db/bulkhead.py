"""Lets a part of the callers have only a part of the database's connections, so that the rest never waits for them.
Knows no route and no table."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from control_plane.db import metrics
from control_plane.errors import DatabaseBusy

MOST = 4
WAIT_S = 1.0


class Bulkhead:
    """At most `most` at a time; who has waited `wait_s` for a place is sent away, to come again."""

    def __init__(self, *, most: int = MOST, wait_s: float = WAIT_S) -> None:
        self._places = asyncio.Semaphore(most)
        self._wait_s = wait_s

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """The body has one of the places. Raises DatabaseBusy."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire()
        except TimeoutError:
            metrics.SHED.inc()
            raise DatabaseBusy from None
        try:
            yield
        finally:
            self._places.release()
