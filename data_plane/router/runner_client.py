"""Speaks to one runner: sends a request, tells apart all the ways it can be lost, and relays a stream untouched.

Knows nothing of choosing a replica, of waking one, or of the client on the other side.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import msgspec

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

    def __init__(self, response: aiohttp.ClientResponse, body: bytes | None, first: bytes, cutter: EventCutter) -> None:
        self.status = response.status
        self.headers = {name: response.headers[name] for name in PASSED_BACK if name in response.headers}
        self.body = body
        self.is_marked = RESUMABLE_HEADER in response.headers
        """Whether the events carry what another replica needs to go on (`wire.resume`)."""
        self._response = response
        self._first = first
        self._cutter = cutter

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
                chunk = await self._response.content.readany()
                if not chunk:
                    break
                whole = cutter.feed(chunk)
                if whole:
                    return whole
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # After its own error event a runner may close however it likes: the client was told.
            if not cutter.failed:
                raise StreamLost(f"the connection broke: {_words(error)}") from error
        if not (cutter.done or cutter.failed):
            raise StreamLost("it stopped before its end")
        await self._finish()
        return b""

    async def _finish(self) -> None:
        """The answer is complete; read the connection's end too, so that it can be used again."""
        try:
            async with asyncio.timeout(FINISH_TIMEOUT_S):
                while not self._response.content.at_eof():
                    await self._response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError):  # then it is closed instead: the client has everything
            self._response.close()

    def close(self) -> None:
        """Let the connection go: back to the pool where the answer was read to its end, else closed at once.

        A runner that sees its connection close aborts the request.
        """
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class RunnerClient:
    """One pool of connections to all runners. Open it inside a running loop; close it at the end."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        timeouts = timeouts or Timeouts()
        self._session = aiohttp.ClientSession(
            # 15 s is well below what runners keep idle connections for, so a reused one is never just closing
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.silence_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            read_bufsize=1 << 17,
        )

    async def close(self) -> None:
        """Close the pool."""
        await self._session.close()

    async def open(
        self, replica: ReplicaRoute, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Upstream:
        """Send a request and wait for the first bytes of a stream, or for the whole of any other answer.

        `headers` are sent as they are, with the launch's token added. Raises Unreachable, Draining or RunnerLost.
        """
        headers = {**headers, "Authorization": f"Bearer {replica.token}"}
        try:
            response = await self._session.request(
                method, replica.url.rstrip("/") + path, data=body, headers=headers, allow_redirects=False
            )
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(_words(error)) from error
        except aiohttp.ServerTimeoutError as error:
            kind = Unreachable if isinstance(error, aiohttp.ConnectionTimeoutError) else RunnerLost
            raise kind(_words(error)) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RunnerLost(_words(error)) from error
        try:
            return await self._begin(response)
        except BaseException:  # a cancelled request must close its connection, or the runner works on
            response.close()
            raise

    async def _begin(self, response: aiohttp.ClientResponse) -> Upstream:
        cutter = EventCutter()
        try:
            if response.status == 200 and response.content_type == "text/event-stream":
                first = b""
                while not first:
                    chunk = await response.content.readany()
                    if not chunk:
                        raise RunnerLost("the stream ended before its first event")
                    first = cutter.feed(chunk)
                return Upstream(response, None, first, cutter)
            body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise RunnerLost(_words(error)) from error
        if response.status in (401, 403):
            raise RunnerLost(f"it answered {response.status} to its launch token: another process has its address")
        if response.status >= 400:
            code = _error_code(body)
            if response.status == 503 and code == DRAINING_CODE:
                raise Draining("it is draining")
            if response.status == 503 and code == ENGINE_DEAD_CODE:
                raise RunnerLost("its engine failed")
            if code is None:
                raise RunnerLost(f"it answered {response.status} with something that is no error of ours")
        return Upstream(response, body, b"", cutter)


def _error_code(body: bytes) -> str | None:
    """The code of an error in the wire's shape (empty where it has none); None where the body has another shape."""
    try:
        return msgspec.json.decode(body, type=ErrorEnvelope).error.code or ""
    except msgspec.DecodeError:
        return None


def _words(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer in time ({type(error).__name__})"
    return str(error) or type(error).__name__
