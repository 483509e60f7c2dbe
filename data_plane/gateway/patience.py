"""Keeps a waiting stream alive: silent at first, then 200 and a comment now and then, until the answer comes.

Knows nothing of what is waited for.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from data_plane.gateway.answers import Stream
from data_plane.gateway.exchange import Exchange
from data_plane.gateway.settings import StreamManners
from data_plane.router.sse import comment


class Patience:
    """Around the wait for a stream's next event. Afterwards `response` is None, or the stream that has begun."""

    def __init__(
        self,
        exchange: Exchange,
        manners: StreamManners,
        describe: Callable[[], str],
        response: Stream | None = None,
    ) -> None:
        self.response = response
        self._exchange = exchange
        self._manners = manners
        self._describe = describe
        self._over = asyncio.Event()
        self._speaking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Patience":
        manners = self._manners
        after_s = manners.silent_s if self.response is None else manners.comment_every_s
        self._timer = asyncio.get_running_loop().call_later(after_s, self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._over.set()
        if self._speaking is None:
            return
        if kind is not None:
            self._speaking.cancel()
        # A comment being written is finished first: the answer must not begin within it.
        await asyncio.wait([self._speaking])
        if not self._speaking.cancelled():
            failure = self._speaking.exception()
            if failure is not None and kind is None:
                raise failure

    def _begin(self) -> None:
        self._speaking = asyncio.get_running_loop().create_task(self._speak())

    async def _speak(self) -> None:
        response = self.response
        if response is None:
            self.response = response = self._exchange.stream()
        while not self._over.is_set():
            await response.write(comment(self._describe()))
            try:
                async with asyncio.timeout(self._manners.comment_every_s):
                    await self._over.wait()
            except TimeoutError:  # the answer is not there yet: say so again
                continue
