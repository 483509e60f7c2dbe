"""Answers as bytes: a whole one in one write, a stream whose head goes out with its first event. Know nothing of what
they carry."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http import HTTPStatus

from data_plane.gateway.client_request import Request
from data_plane.router.http1 import head_bytes

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_BODILESS = (204, 304)


class Answer(ABC):
    """What is alike in all. Headers are named in lower case, each once."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self._headers = headers
        self._stays = headers.get("connection", "").lower() != "close"

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request."""
        return self._stays

    def force_close(self) -> None:
        """The connection ends with this answer."""
        self._stays = False

    @abstractmethod
    def finish(self, request: Request) -> None:
        """Send what is not sent yet. Raises ConnectionResetError where the client has gone."""

    def _head(self, request: Request, *framing: str) -> bytes:
        """ValueError for a header with the end of a line in it: such an answer is not sent."""
        # the rest of a body that nobody read would be taken for the next request
        self._stays = self._stays and request.keeps_alive and request.client.has_body
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        lines += framing
        if not self._stays:
            if "connection" not in self._headers:
                lines.append("connection: close")
        elif request.is_old:
            lines.append("connection: keep-alive")
        lines.append(f"date: {_date()}")
        return head_bytes(lines)


class Whole(Answer):
    """An answer that is there in full."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(status, headers)
        self.content = body

    def finish(self, request: Request) -> None:
        """Sends all of it."""
        bodiless = self.status in _BODILESS
        head = self._head(request, *([] if bodiless else [f"content-length: {len(self.content)}"]))
        is_sent = not bodiless and request.method != "HEAD"
        request.client.send(head + self.content if is_sent else head)


class Stream(Answer):
    """An answer in parts, as they come; chunked, or to an HTTP/1.0 client until the connection closes. It begins with
    its head drawn, which goes out with the first part."""

    def __init__(self, request: Request, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status, headers)
        self._client = request.client
        self._is_chunked = not request.is_old
        self._has_ended = False
        if request.is_old:
            self.force_close()
        self._unsent = self._head(request, *(["transfer-encoding: chunked"] if self._is_chunked else []))

    @property
    def is_full(self) -> bool:
        """Whether the client has not taken what was sent, so that more must wait."""
        return self._client.is_full

    def send(self, data: bytes) -> None:
        """One part, without waiting. Raises ConnectionResetError where the client has gone."""
        assert not self._has_ended, "nothing follows a stream's end"
        if data:  # an empty chunk would be the end
            head, self._unsent = self._unsent, b""
            self._client.send(b"%b%x\r\n%b\r\n" % (head, len(data), data) if self._is_chunked else head + data)

    async def write(self, data: bytes) -> None:
        """One part; waits while the client has not taken what was sent."""
        self.send(data)
        if self._client.is_full:
            await self._client.room()

    def end(self) -> None:
        """The end. Raises ConnectionResetError where the client has gone."""
        if self._has_ended:
            return
        self._has_ended = True
        end = self._unsent + (b"0\r\n\r\n" if self._is_chunked else b"")
        if end:
            self._client.send(end)

    def finish(self, request: Request) -> None:
        """The end, if it is not sent."""
        self.end()


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
