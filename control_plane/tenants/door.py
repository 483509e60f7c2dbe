"""The door that every request passes before Litestar routes it: request id, sane path, a key, and a measured answer.
Deny by default: only OPEN_PATHS pass without a key, and an unknown path is no exception. Knows no route."""

import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import uuid4

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.errors import Invalid, answer_for
from control_plane.tenants.auth import OPEN_PATHS
from data_plane.wire.errors import ApiError
from data_plane.wire.keys import KeyRecord
from data_plane.wire.names import REQUEST_ID

Authenticate = Callable[[str | None], Awaitable[KeyRecord]]
Measure = Callable[[str, str, int, float], None]
"""Called with method, path template, status and seconds."""

MAX_TARGET = 8192


class Door:
    """ASGI application around another one."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate, measure: Measure) -> None:
        self._app = app
        self._authenticate = authenticate
        self._measure = measure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        started = time.monotonic()
        statuses: list[int] = []

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message["headers"] = [*kept, (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._enter(scope, headers)
                await self._app(scope, receive, send_with_id)
            except Exception as error:  # becomes an answer in the one shape; answer_for logs what it does not know
                if statuses:  # the answer has begun: only the connection can still say that it failed
                    raise
                await _answer(send_with_id, answer_for(error))
            finally:
                template = str(scope.get("path_template") or "unknown")
                self._measure(scope["method"], template, statuses[0] if statuses else 499, time.monotonic() - started)

    async def _enter(self, scope: Any, headers: dict[str, str]) -> None:
        if "content-length" in headers and "transfer-encoding" in headers:
            raise _two_lengths()
        _check_target(scope.get("raw_path") or scope["path"].encode(), "path")
        _check_target(scope.get("query_string", b""), "query")
        if scope["path"] not in OPEN_PATHS:
            scope["auth"] = await self._authenticate(headers.get("authorization"))


def _headers(scope: Any) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _two_lengths() -> Invalid:
    """Whoever stands in front may have read another end of this body: what follows on the connection is not trusted."""
    error = Invalid("The request has both Content-Length and Transfer-Encoding. Send one of them.", "content-length")
    error.headers["connection"] = "close"
    return error


def _check_target(raw: bytes, part: str) -> None:
    if len(raw) > MAX_TARGET:
        raise Invalid(f"The {part} of the URL is longer than {MAX_TARGET} characters. Shorten it.", part)
    try:
        text = unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"The {part} of the URL is not valid UTF-8. Percent-encode it as UTF-8.", part) from error
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise Invalid(f"The {part} of the URL contains a control character. Remove it.", part)


async def _answer(send: Send, error: ApiError) -> None:
    body = error.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
