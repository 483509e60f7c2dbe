"""Speaks to one runner: sends a request, tells apart all the ways it can be lost, and relays a stream untouched.

Knows nothing of choosing a replica, of waking one, or of the client on the other side.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from data_plane.router.connections import Connection, ConnectionLost, Pool
from data_plane.router.http1 import Head, head_bytes
from data_plane.router.sse import EventCutter
from data_plane.wire.errors import ErrorEnvelope
from data_plane.wire.resume import DRAINING_CODE, ENGINE_DEAD_CODE, RESUMABLE_HEADER
from data_plane.wire.routes import ReplicaRoute

CONNECT_TIMEOUT_S = 2.0
FINISH_TIMEOUT_S = 0.5
PASSED_BACK = ("content-type", "retry-after", "retry-after-ms", "x-should-retry", "openai-processing-ms")
"""Headers of a runner's answer that a client may see."""


class RunnerUnusable(Exception):
    """This replica did not take the request and no byte of an answer was seen: another may be asked."""


class Unreachable(RunnerUnusable):
    """No connection within the connect timeout: the request was not sent."""


class Draining(RunnerUnusable):
    """The runner is leaving and refuses new requests; it did nothing with this one."""


class RunnerLost(RunnerUnusable):
    """The runner went away after it was sent the request and before the answer's first byte."""


class StreamLost(Exception):
    """The stream broke after its first byte: what was relayed is not the whole answer."""


@dataclass(frozen=True)
class Timeouts:
    """`silence_s`: how long a runner may send nothing at all before it counts as lost."""

    connect_s: float = CONNECT_TIMEOUT_S
    silence_s: float = 600.0


class Upstream:
    """A runner's answer, begun. `body` is the whole of it unless it is a stream, which is read by `read_events`."""

    def __init__(
        self, pool: Pool, connection: Connection, head: Head, body: bytes | None, first: bytes, cutter: EventCutter
    ) -> None:
        self.status = head.status
        self.headers = {name: head.headers[name] for name in PASSED_BACK if name in head.headers}
        self.body = body
        self.is_marked = RESUMABLE_HEADER in head.headers
        """Whether the events carry what another replica needs to go on (`wire.resume`)."""
        self._pool = pool
        self._connection = connection
        self._first = first
        self._cutter = cutter
        self._closed = False

    @property
    def is_stream(self) -> bool:
        """Whether `read_events` has the answer."""
        return self.body is None

    @property
    def failed(self) -> bool:
        """Whether the stream ended with the runner's own error event."""
        return self._cutter.failed

    async def read_events(self) -> bytes:
        """The next whole events, several at once under load; empty where the answer is complete.

        Raises StreamLost where the runner went away, fell silent or ended without `[DONE]` or an error event.
        """
        if self._first:
            first, self._first = self._first, b""
            return first
        cutter = self._cutter
        try:
            while not cutter.done:
                chunk = await self._connection.read()
                if not chunk:
                    break
                whole = cutter.feed(chunk)
                if whole:
                    return whole
        except (ConnectionLost, ValueError) as error:
            # After its own error event a runner may close however it likes: the client was told.
            if not cutter.failed:
                raise StreamLost(str(error)) from error
        if not (cutter.done or cutter.failed):
            raise StreamLost("it stopped before its end")
        return b""

    def close(self) -> None:
        """Let the connection go: back to the pool where the answer has come to its end, else closed at once.

        A runner that sees its connection close aborts the request.
        """
        if self._closed:
            return
        self._closed = True
        if self._connection.complete:
            self._pool.give_back(self._connection)
        elif self._cutter.done and self._connection.is_open:
            # only the end of the body is missing: the client need not wait for that, and the connection is good
            self._connection.linger(self._pool, FINISH_TIMEOUT_S)
        else:
            self._connection.abort()


class RunnerClient:
    """One pool of connections to all runners. Open it inside a running loop; close it at the end."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        timeouts = timeouts or Timeouts()
        self._timeouts = timeouts
        self._pool = Pool(timeouts.connect_s, timeouts.silence_s)

    async def close(self) -> None:
        """Close the pool."""
        self._pool.close()

    async def open(
        self, replica: ReplicaRoute, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Upstream:
        """Send a request and wait for the first bytes of a stream, or for the whole of any other answer.

        `headers` are sent as they are, with the launch's token added. Raises Unreachable, Draining or RunnerLost.
        """
        try:
            address = self._pool.address(replica.url)
            connection = await self._pool.take(address)
        except TimeoutError as error:
            raise Unreachable(f"no connection within {self._timeouts.connect_s:.1f} s") from error
        except (OSError, ValueError) as error:
            raise Unreachable(str(error)) from error
        try:
            start = f"{method} {address.prefix}{path} HTTP/1.1"
            connection.send(request_bytes(start, address.host_header, replica.token, headers, body))
            return await self._begin(connection)
        except BaseException:  # a cancelled request must close its connection, or the runner works on
            connection.abort()
            raise

    async def _begin(self, connection: Connection) -> Upstream:
        cutter = EventCutter()
        try:
            head = await connection.head()
            if head.status == 200 and head.content_type == "text/event-stream":
                first = b""
                while not first:
                    chunk = await connection.read()
                    if not chunk:
                        raise RunnerLost("the stream ended before its first event")
                    first = cutter.feed(chunk)
                return Upstream(self._pool, connection, head, None, first, cutter)
            body = await _whole(connection)
        except (ConnectionLost, ValueError) as error:
            raise RunnerLost(str(error)) from error
        if head.status in (401, 403):
            raise RunnerLost(f"it answered {head.status} to its launch token: another process has its address")
        if head.status >= 400:
            code = _error_code(body)
            if head.status == 503 and code == DRAINING_CODE:
                raise Draining("it is draining")
            if head.status == 503 and code == ENGINE_DEAD_CODE:
                raise RunnerLost("its engine failed")
            if code is None:
                raise RunnerLost(f"it answered {head.status} with something that is no error of ours")
        return Upstream(self._pool, connection, head, body, b"", cutter)


def request_bytes(start: str, host: str, token: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """A request with exactly these headers, host, token and length. ValueError for a value with a line's end in it."""
    lines = [start, f"Host: {host}", f"Authorization: Bearer {token}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return head_bytes(lines) + (body or b"")


async def _whole(connection: Connection) -> bytes:
    pieces: list[bytes] = []
    while piece := await connection.read():
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _error_code(body: bytes) -> str | None:
    """The code of an error in the wire's shape (empty where it has none); None where the body has another shape."""
    try:
        return msgspec.json.decode(body, type=ErrorEnvelope).error.code or ""
    except msgspec.DecodeError:
        return None
