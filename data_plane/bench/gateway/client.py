"""A load generator that costs little: it shares its machine with what it measures.

Knows one kind of request and reads of an answer its status, its end and how many events it had. Not for servers that
send several answers on a connection at once, or hold back the end of a body.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

EVENT = b"data:"
_BODY_END = b"0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"
_NUMBER = b"000000000000"

OnEnd = Callable[["Connection"], None]


class TargetDown(Exception):
    """What should be measured does not answer, or with something else than was asked for."""


@dataclass(frozen=True)
class Target:
    """Something that answers POST /v1/chat/completions under `url`. `model` is what its requests name."""

    name: str
    url: str
    key: str
    model: str

    @property
    def address(self) -> tuple[str, int]:
        """(host, port). ValueError where the URL has none."""
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"'{self.url}' is no URL such as http://127.0.0.1:7071; TLS is not measured.")
        return parts.hostname, parts.port or 80


class Requests:
    """The bytes of a target's requests: each has a prompt of its own, so that no cache of answers helps."""

    def __init__(self, target: Target, stream: bool, prompt_chars: int = 400) -> None:
        text = ("Tell me what the tide does. " * (prompt_chars // 28 + 1))[:prompt_chars]
        body = (
            b'{"model":"%b","messages":[{"role":"user","content":"%b %b"}],"max_tokens":64,"temperature":0,"stream":%b}'
            % (target.model.encode(), _NUMBER, text.encode(), b"true" if stream else b"false")
        )
        host, port = target.address
        path = urlsplit(target.url).path.rstrip("/")
        head = (
            f"POST {path}/v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Authorization: Bearer {target.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._before, self._after = (head.encode() + body).split(_NUMBER)
        self._count = 0

    def next(self) -> bytes:
        """Another request."""
        self._count += 1
        return b"%b%012d%b" % (self._before, self._count, self._after)


class Connection(asyncio.Protocol):
    """One request at a time. After `on_end`: `ok`, `status`, `events`, and `sent`, `first`, `ended` (perf_counter)."""

    def __init__(self) -> None:
        self.ok = False
        self.sent = self.first = self.ended = 0.0
        self.events = 0
        self.status = 0
        self.closed = False
        self._on_end: OnEnd | None = None
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._tail = b""
        self._left = -1
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._end(ok=False)

    def send(self, request: bytes, on_end: OnEnd) -> None:
        """Send a request; `on_end` is called when its answer has ended, well or not."""
        assert self._transport is not None and self._on_end is None
        self._on_end = on_end
        self.events = self.status = 0
        self.first = 0.0
        self._head = self._tail = b""
        self._in_body = False
        self.sent = perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            data = self._head + data if self._head else data
            end = data.find(_HEAD_END)
            if end < 0:
                self._head = data
                return
            self._begin_body(data[:end].lower())
            data = data[end + 4 :]
            if not data and self._left:
                return
        if not self.first:
            self.first = perf_counter()
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._end(ok=self.status == 200)
            return
        joined = self._tail + data
        self.events += joined.count(EVENT)
        self._tail = joined[-4:]
        if joined.endswith(_BODY_END):
            self._end(ok=self.status == 200)

    def _begin_body(self, head: bytes) -> None:
        self._in_body = True
        self.status = int(head[9:12])
        at = head.find(b"\r\ncontent-length:")
        self._left = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else -1

    def _end(self, ok: bool) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            self.ok = ok
            self.ended = perf_counter()
            on_end(self)


async def connect(target: Target) -> Connection:
    """A connection to the target. Raises TargetDown where nobody listens."""
    host, port = target.address
    try:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    except OSError as error:
        raise TargetDown(f"{target.name} does not answer at {target.url}: {error}. Is it started?") from error
    return connection


async def ask_once(target: Target, stream: bool) -> Connection:
    """One request by itself; its connection, ended. Raises TargetDown where it is not answered with 200 in 30 s."""
    connection = await connect(target)
    ended = asyncio.Event()
    connection.send(Requests(target, stream).next(), lambda _connection: ended.set())
    try:
        async with asyncio.timeout(30):
            await ended.wait()
    except TimeoutError:
        raise TargetDown(f"{target.name} did not answer a request within 30 s.") from None
    finally:
        connection.close()
    if not connection.ok:
        raise TargetDown(f"{target.name} answered {connection.status or 'nothing'} to a request at {target.url}.")
    return connection
