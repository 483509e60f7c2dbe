"""Sends messages one at a time, each within a deadline, so that a broker that blocks its publishers holds up nobody but
the messages. Knows no broker and no message."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

PUBLISH_S = 5.0


class Undelivered(Exception):
    """The message did not leave in time, or the one before it is still under way."""


class Sender:
    """One thread at most: one that is stuck in a broker's client cannot be ended, so no second is started beside it."""

    def __init__(self, deadline_s: float = PUBLISH_S) -> None:
        self._deadline_s = deadline_s
        self._turn = asyncio.Lock()
        self._thread: threading.Thread | None = None

    async def send(self, publish: Callable[[], None]) -> None:
        """Runs `publish`, which may block. Raises Undelivered, or what `publish` raises."""
        try:
            async with asyncio.timeout(self._deadline_s):
                async with self._turn:
                    await self._run(publish)
        except TimeoutError:
            raise Undelivered(f"The broker did not take a message within {self._deadline_s:g} s.") from None

    async def _run(self, publish: Callable[[], None]) -> None:
        if self._thread is not None and self._thread.is_alive():
            raise Undelivered("The broker has not yet taken the message before this one.")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: Exception | None) -> None:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        def work() -> None:
            error: Exception | None = None
            try:
                publish()
            except Exception as caught:  # noqa: BLE001 - handed to whoever waits
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(settle, error)

        self._thread = threading.Thread(target=work, name="publish", daemon=True)
        self._thread.start()
        await done
        self._thread.join()
