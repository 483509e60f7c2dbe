"""Connections to runners: one request at a time on each, kept for the next one while they are fresh.

Ours rather than the client of aiohttp because this is what a gateway does most. CPU of a request on an EPYC of 2 GHz,
with a stub that answers at once: a whole answer 275 us there and 88 here, a stream of 65 events 2.8 ms there and 0.9
here (most of that by gathering). Knows nothing of what is asked or answered, nor of which runner is asked.
"""

import asyncio
import ssl
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from data_plane.router.http1 import AnswerReader, Head, Malformed

IDLE_S = 15.0
"""Well below what runners keep idle connections for, so that a reused one is never just closing."""
MOST_BUFFERED_BYTES = 128 << 10
"""What is taken in of a body that nobody reads; then the runner has to wait."""
GATHER_S = 0.001
"""Bytes that follow others within this time wait for more, so that a fast stream costs one wake a millisecond rather
than one an event. The steps of an engine are further apart."""
_MOST_ADDRESSES = 4096


class ConnectionLost(Exception):
    """The connection ended or fell silent before the answer did, or what came was no answer."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a runner listens. `host_header` is what it is called in requests, `prefix` what stands before each path."""

    host: str
    port: int
    secure: bool
    host_header: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> "Address":
        """ValueError for what is no http or https URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"A replica's URL must be http://host:port, not {url[:200]!r}.")
        secure = parts.scheme == "https"
        host_header = parts.netloc.rpartition("@")[2]
        return cls(parts.hostname, parts.port or (443 if secure else 80), secure, host_header, parts.path.rstrip("/"))


class Connection(asyncio.Protocol):
    """`send`, wait for `head`, `read` until it is empty; then `Pool.give_back`. `abort` at any time."""

    def __init__(self, address: Address, silence_s: float) -> None:
        self.address = address
        self.idle_since = 0.0
        self.is_open = False
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._answer: AnswerReader | None = None
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._held = False
        self._error: ConnectionLost | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._heard = self._given = 0.0
        self._gathering: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._linger_over: Pool | None = None

    @property
    def complete(self) -> bool:
        """Whether the answer has come to its end (what of it was not read yet may be dropped)."""
        return self._answer is not None and self._answer.complete

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on this connection."""
        answer = self._answer
        done = answer is None or (answer.complete and answer.head is not None and answer.head.keeps_alive)
        return done and self.is_open and self._error is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._transport = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._stop_gathering()
        self._fail(f"the connection broke: {exc or 'it was closed'}")

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        answer = self._answer
        if answer is None:
            self.abort()  # nothing was asked: whatever this is, it would be taken for the next answer
            return
        try:
            piece = answer.feed(data)
        except Malformed as fault:
            self._fail(f"what it sent is no answer: {fault}")
            self.abort()
            return
        if self._linger_over is not None:
            if answer.complete:
                self._linger_over.give_back(self)
            return
        if piece:
            self._pieces.append(piece)
            self._buffered += len(piece)
            if self._buffered > MOST_BUFFERED_BYTES:
                self._hold_back()
        if self._waiter is None or answer.head is None:
            return
        if answer.complete or self._heard - self._given >= GATHER_S:
            self._wake()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(GATHER_S, self._gathered)
            self._hold_back()

    def send(self, request: bytes) -> None:
        """Begin a request. The connection must be `reusable`."""
        assert self._transport is not None
        self._answer = AnswerReader()
        self._pieces.clear()
        self._buffered = 0
        self._heard, self._given = self._loop.time(), 0.0
        if self._watch is None:
            self._watch = self._loop.call_later(self._silence_s, self._check_silence)
        self._transport.write(request)

    async def head(self) -> Head:
        """The answer's head. Raises ConnectionLost."""
        assert self._answer is not None
        while self._answer.head is None:
            await self._more()
        return self._answer.head

    async def read(self) -> bytes:
        """All of the body that has come, waiting where there is none yet; empty at its end. Raises ConnectionLost."""
        while not self._pieces:
            if self.complete:
                return b""
            await self._more()
        pieces = self._pieces
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        self._given = self._loop.time()
        self._let_on()
        return whole

    def abort(self) -> None:
        """End the connection at once: a runner that sees that drops the request."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def linger(self, pool: "Pool", most_s: float) -> None:
        """What is still to come is not wanted, and is next to nothing: give the connection back when it has come."""
        self._linger_over = pool
        self._stop_gathering()
        self._pieces.clear()
        self._let_on()
        self._loop.call_later(most_s, self._stop_lingering, self._answer)

    def free(self) -> None:
        """Forget the answer: the connection is idle now."""
        self._answer = None
        self._linger_over = None
        self._stop_gathering()
        self._pieces.clear()
        self._let_on()

    def _stop_lingering(self, answer: AnswerReader | None) -> None:
        if self._linger_over is not None and self._answer is answer:
            self.abort()

    def _hold_back(self) -> None:
        if not self._held and self._transport is not None:
            self._held = True
            self._transport.pause_reading()

    def _let_on(self) -> None:
        if self._held and self._gathering is None and self._transport is not None:
            self._held = False
            self._heard = self._loop.time()
            self._transport.resume_reading()

    def _stop_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    def _gathered(self) -> None:
        self._gathering = None
        if self._buffered <= MOST_BUFFERED_BYTES:
            self._let_on()
        self._wake()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None and not self._pieces:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, words: str) -> None:
        if self._error is None and not self.complete:
            self._error = ConnectionLost(words)
        self._wake()

    def _check_silence(self) -> None:
        """One timer watches all requests of a connection: a timer for each read would cost more than reading."""
        self._watch = None
        if self._answer is None or self.complete:
            return
        left_s = self._silence_s if self._held else self._heard + self._silence_s - self._loop.time()
        if left_s > 0.001:
            self._watch = self._loop.call_later(left_s, self._check_silence)
            return
        self._fail(f"nothing came for {self._silence_s:.1f} s")
        self.abort()


class Pool:
    """Open connections by address. Everything given out comes back by `give_back`, or is aborted."""

    def __init__(self, connect_s: float, silence_s: float) -> None:
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._idle: dict[Address, list[Connection]] = {}
        self._addresses: dict[str, Address] = {}
        self._tls: ssl.SSLContext | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def address(self, url: str) -> Address:
        """The parts of a replica's URL, remembered. ValueError for what is no URL."""
        address = self._addresses.get(url)
        if address is None:
            if len(self._addresses) >= _MOST_ADDRESSES:
                self._addresses.clear()
            address = self._addresses[url] = Address.parse(url)
        return address

    async def take(self, address: Address) -> Connection:
        """A connection, kept or new. Raises OSError or TimeoutError where there is none within the connect timeout."""
        idle = self._idle.get(address)
        oldest = asyncio.get_running_loop().time() - IDLE_S
        while idle:
            connection = idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        if address.secure and self._tls is None:
            self._tls = ssl.create_default_context()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_s):
            _, connection = await loop.create_connection(
                lambda: Connection(address, self._silence_s),
                address.host,
                address.port,
                ssl=self._tls if address.secure else None,
            )
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer is complete for the next request; any other is ended."""
        if self._closed or not connection.reusable:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.free()
        connection.idle_since = loop.time()
        self._idle.setdefault(connection.address, []).append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(IDLE_S, self._close_stale)

    def close(self) -> None:
        """End all idle connections, and from now on each that comes back."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()

    def _close_stale(self) -> None:
        oldest = asyncio.get_running_loop().time() - IDLE_S
        self._sweep = None
        for address, idle in list(self._idle.items()):
            for connection in idle:
                if connection.idle_since <= oldest:
                    connection.abort()
            fresh = [one for one in idle if one.is_open and one.idle_since > oldest]
            if fresh:
                self._idle[address] = fresh
            else:
                del self._idle[address]
        if self._idle:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_S, self._close_stale)
