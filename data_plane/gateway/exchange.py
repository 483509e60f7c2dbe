"""One request and its answer, as all parts of the gateway see them: identity, body, headers out, and what to log.

Knows nothing of routes or runners.
"""

import asyncio
import random
import re

from data_plane.gateway.answers import Stream, Whole
from data_plane.gateway.client_request import BodyTooLarge, Request
from data_plane.gateway.meter import Meter
from data_plane.router.http1 import Malformed
from data_plane.router.lease import Lease
from data_plane.wire.errors import ApiError, invalid
from data_plane.wire.keys import KeyRecord
from data_plane.wire.names import REQUEST_ID, TENANT_HEADER, USAGE_HEADER

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_HOLD_HEADERS = ("x-ebb-hold-timeout", "x-scale-up-timeout")
_SESSION_HEADERS = ("x-session-id", "x-ebb-session")
_MOST_SESSION = 256
JSON_TYPE = {"Content-Type": "application/json"}
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class Exchange:
    """Times are the loop's. `held_s` is None while the request was never held for a replica; `is_cold`: it was held for
    one to start. `key` is None until the request's key was found good.

    What most requests never change is said once, for the class: setting twenty fields takes longer than parsing.
    """

    tenant: str = ""
    key: KeyRecord | None = None
    endpoint: str = ""
    model: str = ""
    replica: str = ""
    route: str = ""
    held_since: float | None = None
    held_s: float | None = None
    is_cold: bool = False
    first_byte_s: float | None = None
    tries: int = 0
    status: int = 0
    outcome: str = "ok"
    code: str = ""
    lease: Lease | None = None
    """The last place it had on a replica."""
    reason: str = ""
    response: Stream | None = None
    """The stream that has begun."""
    meter: Meter | None = None
    """Of its tokens, once it was let in."""

    def __init__(self, request: Request, request_id: str, arrived: float) -> None:
        self.request = request
        self.request_id = request_id
        self.arrived = arrived
        self.headers: dict[str, str] = {}

    @classmethod
    def begin(cls, request: Request) -> "Exchange":
        """A valid incoming request id is kept; every other request gets a new one."""
        given = request.headers.get("x-request-id", "")
        request_id = given if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        return cls(request, request_id, asyncio.get_running_loop().time())

    def hold(self, is_cold: bool) -> None:
        """The request has to wait for a replica, from now (or still, where it was sent back to wait)."""
        self.is_cold |= is_cold
        if self.held_since is None:
            self.held_since = asyncio.get_running_loop().time()

    def release(self) -> None:
        """The request has a replica, or was given up."""
        if self.held_since is not None:
            self.held_s = asyncio.get_running_loop().time() - self.held_since

    def note_route(self, lease: Lease) -> None:
        """The request goes there; the answer's headers say so."""
        self.lease, self.replica = lease, lease.replica.id
        self.headers["x-ebb-route"] = f"replica={self.replica}; reason={lease.reason}; matched={lease.matched_tokens}"

    @property
    def session(self) -> str | None:
        """The client's word for the session that this request is part of, if a header says it."""
        for name in _SESSION_HEADERS:
            text = self.request.headers.get(name, "").strip()
            if text:
                return text[:_MOST_SESSION]
        return None

    def answer_headers(self) -> dict[str, str]:
        """What every answer carries."""
        cold = {"x-ebb-cold-start": "1" if self.is_cold else "0"}
        if self.held_s is not None:
            cold["x-ebb-wake-ms" if self.is_cold else "x-ebb-queue-ms"] = str(round(self.held_s * 1000))
        return {"x-request-id": self.request_id, **cold, **self.headers}

    def upstream_headers(self) -> dict[str, str]:
        """All that a runner hears of the client's headers."""
        headers = {**JSON_TYPE, "x-request-id": self.request_id, TENANT_HEADER: self.tenant, USAGE_HEADER: "1"}
        trace = self.request.headers.get("traceparent", "")
        if _TRACEPARENT.fullmatch(trace):
            headers["traceparent"] = trace
        return headers

    def hold_s(self, default_s: float) -> float:
        """How long the client lets this request be held: the default, or less. ApiError 400 for what is no number."""
        for name in _HOLD_HEADERS:
            text = self.request.headers.get(name)
            if text is None:
                continue
            if not _SECONDS.fullmatch(text.strip()):
                raise invalid(f"The header '{name}' must be a number of seconds, 0 or more, not {text[:40]!r}.", name)
            return min(default_s, float(text))
        return default_s

    async def body(self, most_bytes: int, timeout_s: float) -> bytes:
        """The request's body. ApiError 413 where it is too large, before more of it is read; 408 where it stalls;
        415 where it is compressed."""
        coding = self.request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise _compressed(coding)
        if self.request.num_bytes is not None and self.request.num_bytes > most_bytes:
            raise _too_large(most_bytes)
        client = self.request.client
        if self.request.headers.get("expect", "").lower() == "100-continue" and not client.has_body:
            client.send_interim(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if client.has_body:  # all of it came with the head: nothing to wait for
                return await client.body(most_bytes)
            async with asyncio.timeout(timeout_s):
                return await client.body(most_bytes)
        except BodyTooLarge:
            raise _too_large(most_bytes) from None
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {timeout_s:.0f} s.", code="request_timeout") from None
        except Malformed as error:
            raise invalid(f"The body could not be read: {error}.", code="invalid_body") from error

    def plain(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> Whole:
        """A whole answer."""
        self.status = status
        # a runner writes header names its own way: one name, however it is written, is one header
        given = {name.lower(): value for name, value in headers.items()} if headers else {}
        return Whole(status, body, {"content-type": "application/json", **given, **self.answer_headers()})

    def stream(self) -> Stream:
        """An event stream; its head goes out with its first event."""
        self.status = 200
        return Stream(self.request, 200, {**STREAM_HEADERS, **self.answer_headers()})

    def refuse(self, error: ApiError) -> Whole:
        """An answer that is an error."""
        self.note_error(error)
        return self.plain(error.status, error.encode(), error.headers)

    def note_error(self, error: ApiError) -> None:
        """How this ended, for metrics and the log."""
        self.code = error.body.code or ""
        self.reason = error.body.param or self.code if error.status == 429 else self.code
        if self.outcome == "ok":
            self.outcome = "client_error" if error.status < 500 else "error"


def _too_large(most_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {most_bytes} bytes ({most_bytes >> 20} MiB). Send less.",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def _compressed(coding: str) -> ApiError:
    return ApiError(
        415,
        f"The body is compressed ('{coding[:40]}'), which is not read. Send it without Content-Encoding.",
        param="content-encoding",
        code="unsupported_encoding",
        headers={"Accept-Encoding": "identity"},
    )
