"""One client's connection: its requests one after the other, their bodies, what is sent back, and how long it may take.

Ours rather than the server of aiohttp because every request passes it, and half of what one cost was spent there: on a
task, a stream and a dozen objects of each. The figures are with `ebb bench gateway`. Knows nothing of what is served.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, cast

from data_plane.gateway.client_request import BodyTooLarge, Request, check_beginning, read_head
from data_plane.router.http1 import BodyReader, Malformed

HEAD_TIMEOUT_S = 10.0
"""From a connection's or a request's first byte to the end of the request's head."""
IDLE_S = 75.0
"""How long a connection is kept between two requests."""
STALLED_S = 60.0
"""How long a client may leave a whole answer untaken."""
LINGER_S = 5.0
"""How long what is left of a body is read to no purpose, so that its sender gets to read why it was refused."""
MOST_AHEAD_BYTES = 64 << 10
"""What is taken in before anyone asks for it; then the client has to wait."""


class Answer(Protocol):
    """What a request is answered with."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request."""
        ...

    def finish(self, request: Request) -> None:
        """Send what is not sent yet."""
        ...


Handle = Callable[[Request], Awaitable[Answer]]
"""Answers a request. A ConnectionError: its answer breaks off, and the connection with it."""
Refuse = Callable[[Request, Malformed], Answer]
"""Answers what is no request."""


class ClientConnection(asyncio.Protocol):
    """Serves requests by `handle`. `known` is told of it while it is open."""

    def __init__(self, handle: Handle, refuse: Refuse, known: "set[ClientConnection]") -> None:
        self.has_begun = False
        self._handle = handle
        self._refuse = refuse
        self._known = known
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._ahead = b""
        """What came and belongs to no request yet."""
        self._request: Request | None = None
        self._body: BodyReader | None = None
        self._pieces: list[bytes] = []
        self._num_bytes = 0
        self._most_bytes = MOST_AHEAD_BYTES
        self._fault: Malformed | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room: list[asyncio.Future[None]] = []
        self._is_full = False
        self._is_held = False
        self._lingers = False
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is in hand."""
        return self._request is None

    # what the event loop says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client is there."""
        self._transport = cast(asyncio.Transport, transport)
        raw: socket.socket | None = transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):  # a client that vanished without a word is found out in the end
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._known.add(self)
        self._give_until(self._loop.time() + HEAD_TIMEOUT_S)
        self._task = self._loop.create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, and takes its request with it."""
        self._transport = None
        self._known.discard(self)
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._make_room()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, or of a request that was sent before the last one is answered."""
        body = self._body
        if body is None:
            self._ahead = self._ahead + data if self._ahead else data
            self._begin()
        elif not body.complete:
            self._take_body(body, data)
        elif not self._lingers:
            self._ahead += data
            if len(self._ahead) > MOST_AHEAD_BYTES:
                self._hold_back()

    def pause_writing(self) -> None:
        """The client does not take what is sent as fast as it is sent."""
        self._is_full = True

    def resume_writing(self) -> None:
        """It took some."""
        self._is_full = False
        self._make_room()

    # what answers a request uses

    @property
    def is_full(self) -> bool:
        """Whether the client has not taken what was sent, so that more must wait."""
        return self._is_full

    @property
    def has_body(self) -> bool:
        """Whether all of the request's body is here."""
        return self._body is not None and self._body.complete

    def send(self, data: bytes) -> None:
        """Part of an answer. Raises ConnectionResetError where the client has gone."""
        self.has_begun = True
        self.send_interim(data)

    def send_interim(self, data: bytes) -> None:
        """A word before the answer, which is not its beginning."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self._transport.write(data)

    async def room(self) -> None:
        """Wait until the client has taken enough. Raises ConnectionResetError where it has gone."""
        while self._is_full and self._transport is not None:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room.append(waiter)
            await waiter
        if self._transport is None:
            raise ConnectionResetError("the client has gone")

    async def body(self, most_bytes: int) -> bytes:
        """The request's body. Raises BodyTooLarge, or Malformed where its framing is none."""
        self._most_bytes = most_bytes
        body = self._body
        assert body is not None
        while not body.complete and self._fault is None and self._num_bytes <= most_bytes:
            self._let_on()
            await self._wait()
        if self._num_bytes > most_bytes:
            raise BodyTooLarge
        if not body.complete and self._fault is not None:
            raise self._fault
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection when what was sent has been taken."""
        if self._transport is not None:
            self._transport.close()

    # requests, one after the other

    async def _serve(self) -> None:
        """All that is asked on this connection. Ends with it."""
        stays = True
        try:
            while stays and self._transport is not None:
                if self._request is None and self._fault is None:
                    await self._wait()
                else:
                    stays = await self._answer()
            if self._transport is not None:
                self._part()
        except BaseException:
            self.abort()  # nobody serves this connection any more, whatever it was: it must not stay open
            raise

    async def _answer(self) -> bool:
        """Answers the request in hand, or what is none; whether the connection may serve another."""
        request = self._request
        try:
            if request is None:
                assert self._fault is not None
                request = Request.unreadable(self)
                answer = self._refuse(request, self._fault)
            else:
                answer = await self._handle(request)
            answer.finish(request)
        except (ConnectionError, ValueError):  # ValueError: a head that must not be sent
            if self.has_begun and request is not None and request.is_old:
                self.abort()  # closing alone would be the end of its answer
            return False
        if self._is_full:
            self._give_until(self._loop.time() + STALLED_S)
            await self.room()
        if not (answer.keep_alive and request.keeps_alive and self.has_body):
            return False
        self._next()
        return True

    def _next(self) -> None:
        """Forget the request that was answered; the next one may have come already."""
        assert self._body is not None
        rest = self._body.rest
        self._ahead = rest + self._ahead if rest else self._ahead
        self._request = self._body = None
        self._pieces.clear()
        self._num_bytes, self._most_bytes = 0, MOST_AHEAD_BYTES
        self.has_begun = False
        self._let_on()
        self._give_until(self._loop.time() + IDLE_S)
        if self._ahead:
            self._begin()

    def _part(self) -> None:
        """Close, after a last answer. Bytes of a body that are still to come would have the answer thrown away."""
        if self._request is None or self.has_body or self._request.headers.get("expect"):
            self.close()
            return
        self._lingers = True
        self._pieces.clear()
        self._let_on()
        self._give_until(self._loop.time() + LINGER_S)

    def _begin(self) -> None:
        """Make a request of what came, if a head is there."""
        if self._fault is not None:
            return
        end = self._ahead.find(b"\r\n\r\n")
        try:
            if end < 0:
                self._await_head()
                return
            raw, rest = self._ahead[:end], self._ahead[end + 4 :]
            self._ahead = b""
            self._request = request = read_head(self, raw)
        except Malformed as fault:
            self._fail(fault)
            return
        self._deadline = None
        self._body = body = BodyReader(request.num_bytes)
        if rest:
            self._take_body(body, rest)
        self._wake()

    def _await_head(self) -> None:
        check_beginning(self._ahead)
        latest = self._loop.time() + HEAD_TIMEOUT_S
        if self._deadline is None or self._deadline > latest:
            self._give_until(latest)

    def _take_body(self, body: BodyReader, data: bytes) -> None:
        try:
            piece = body.feed(data)
        except Malformed as fault:
            self._fail(fault)
            return
        if self._lingers:
            if body.complete:
                self.close()
            return
        self._num_bytes += len(piece)
        if piece:
            self._pieces.append(piece)
        if body.complete:
            self._wake()
        elif self._num_bytes > self._most_bytes:
            self._hold_back()
            self._wake()

    def _fail(self, fault: Malformed) -> None:
        if self._lingers:
            self.close()
            return
        self._fault = fault
        self._deadline = None
        self._wake()

    # waiting and being waited for

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _make_room(self) -> None:
        waiting: Sequence[asyncio.Future[None]] = self._room
        self._room = []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _hold_back(self) -> None:
        if not self._is_held and self._transport is not None:
            self._is_held = True
            self._transport.pause_reading()

    def _let_on(self) -> None:
        if self._is_held and self._transport is not None:
            self._is_held = False
            self._transport.resume_reading()

    def _give_until(self, deadline: float) -> None:
        """The connection ends at `deadline`, unless that is put off. One timer serves all requests of a connection:
        setting one for each is not free."""
        self._deadline = deadline
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._check_time)

    def _check_time(self) -> None:
        self._timer = None
        deadline = self._deadline
        if deadline is None:
            return
        if deadline - self._loop.time() <= 0.001:
            self.abort()
        else:
            self._timer = self._loop.call_at(deadline, self._check_time)
