"""A runner that keeps its model and gives back the memory of its KV cache while nobody needs it. Knows nothing of
signals, and nothing of who decides."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from data_plane.runner.server import Service


class Parking:
    """`on_parked` and `on_back` (with the seconds it took) are called when it is done, `keep` before memory goes."""

    def __init__(
        self,
        service: Service,
        on_parked: Callable[[], None],
        on_back: Callable[[float], None],
        keep: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._service = service
        self._keep = keep
        self._on_parked = on_parked
        self._on_back = on_back
        self._is_wanted = False
        self._is_given_back = False
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def park(self) -> None:
        """New requests are refused from now on, for another replica to answer; the memory goes with the last one."""
        if self._service.model is None or self._is_wanted:
            return
        self._is_wanted = self._service.parked = True
        self._task = asyncio.get_running_loop().create_task(self._park(), name="park")

    async def unpark(self) -> None:
        """Back in service when this returns. MemoryError where there is no memory for it any more."""
        began = time.monotonic()
        if not self._is_wanted or self._service.model is None:
            return
        self._is_wanted = False
        async with self._lock:
            if self._is_given_back:
                await self._service.model.engine.take_back()
                self._is_given_back = False
            self._service.parked = False
        self._on_back(time.monotonic() - began)

    async def _park(self) -> None:
        await self._service.idle.wait()
        if self._keep is not None:
            await self._keep()
        async with self._lock:
            if not self._is_wanted or self._service.model is None:
                return  # it was wanted again before its last request had ended
            await self._service.model.engine.give_back()
            self._is_given_back = True
        self._on_parked()
