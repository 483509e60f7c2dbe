"""Answers as bytes: a whole one in one write, a stream whose head goes out with its first event.

They stand in for aiohttp's own, whose heads pass through a multidict, a dozen defaults and two writes: a tenth of all
that a request costs here. Know nothing of what they carry.
"""

import time
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from data_plane.router.http1 import head_bytes

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_BODILESS = (204, 304)


class _Answer(web.StreamResponse):
    """What the server asks of any answer. Headers are named in lower case, each once."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status=status)
        self._own = headers
        self._head = b""
        self._writer: AbstractStreamWriter | None = None
        self._stays = headers.get("connection", "").lower() != "close"

    @property
    def prepared(self) -> bool:
        """Whether it has begun."""
        return self._writer is not None

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request."""
        return self._stays

    def force_close(self) -> None:
        """The connection ends with this answer."""
        self._stays = False

    def _begin(self, request: web.BaseRequest, *framing: str) -> AbstractStreamWriter:
        """Draws the head. ValueError for a header with the end of a line in it: such an answer is not sent."""
        self._stays = self._stays and request.keep_alive
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self._own.items()]
        lines += framing
        if not self._stays:
            if "connection" not in self._own:
                lines.append("connection: close")
        elif request.version != HttpVersion11:
            lines.append("connection: keep-alive")
        lines.append(f"date: {_date()}")
        self._head = head_bytes(lines)
        self._writer = request.writer
        return self._writer


class Whole(_Answer):
    """An answer that is there in full; it is sent when the server prepares it."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(status, headers)
        self.content = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Sends all of it."""
        if self._writer is not None:
            return self._writer
        bodiless = self.status in _BODILESS
        writer = self._begin(request, *([] if bodiless else [f"content-length: {len(self.content)}"]))
        is_sent = not bodiless and request.method != "HEAD"
        await writer.write(self._head + self.content if is_sent else self._head)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to send."""
        assert not data, "a whole answer has no more to say"


class Stream(_Answer):
    """An answer in parts, as they come; chunked, or to an HTTP/1.0 client until the connection closes."""

    _is_chunked = True
    _has_ended = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Begins: the head goes out with the first part."""
        if self._writer is not None:
            return self._writer
        self._is_chunked = request.version == HttpVersion11
        if not self._is_chunked:
            self.force_close()
        return self._begin(request, *(["transfer-encoding: chunked"] if self._is_chunked else []))

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """One part; waits while the client has not taken what was sent before."""
        assert self._writer is not None and not self._has_ended, "a stream is written to between prepare and write_eof"
        if not data:
            return  # an empty chunk would be the end
        head, self._head = self._head, b""
        await self._writer.write(b"%b%x\r\n%b\r\n" % (head, len(data), data) if self._is_chunked else head + data)

    async def write_eof(self, data: bytes = b"") -> None:
        """The end."""
        if self._has_ended:
            return
        assert self._writer is not None, "a stream is prepared before it ends"
        if data:
            await self.write(data)
        head, self._head = self._head, b""
        self._has_ended = True
        end = head + (b"0\r\n\r\n" if self._is_chunked else b"")
        if end:
            await self._writer.write(end)


class _Clock:
    second = 0
    text = ""


def _date() -> str:
    """Now, as HTTP writes it; drawn once a second."""
    second = int(time.time())
    if second != _Clock.second:
        _Clock.second = second
        _Clock.text = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(second))
    return _Clock.text
