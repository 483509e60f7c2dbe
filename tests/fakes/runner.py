"""A runner without a model: the OpenAI surface over a real socket, fixed text, and hooks for every way to fail."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from data_plane.wire.errors import ErrorBody, ErrorEnvelope
from data_plane.wire.names import USAGE_HEADER
from data_plane.wire.routes import ReplicaRoute


@dataclass
class Behaviour:
    """What the next requests meet. `crash` and `hang`: before_first_byte, or after `events` events of a stream."""

    delay_s: float = 0.0
    events: int = 4
    event_every_s: float = 0.0
    text: str = "tok "
    crash: str | None = None
    hang: str | None = None
    draining: bool = False
    end_without_done: bool = False
    error_event: bool = False
    status: int = 200
    raw_error: bytes | None = None
    response_headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass
class Seen:
    """One request as it arrived; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class FakeRunner:
    """Start it, put `route` into the fake control plane's state, and look at what it saw."""

    def __init__(self, replica_id: str = "replica-1", slots: int = 32, token: str = "launch-token") -> None:
        self.replica_id = replica_id
        self.slots = slots
        self.token = token
        self.behaviour = Behaviour()
        self.seen: list[Seen] = []
        self.running = 0
        self.most_running = 0
        self.aborted = 0
        self.changed = asyncio.Event()
        self.prefixes: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        """Answers GET /prefixes; None: it has no such path."""
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        assert self._runner is not None
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @property
    def route(self) -> ReplicaRoute:
        return ReplicaRoute(self.replica_id, self.url, self.token, self.slots)

    async def start(self, port: int = 0) -> "FakeRunner":
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._infer)
        app.router.add_post("/v1/completions", self._infer)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._tokenize)
        app.router.add_get("/tokenizer_info", self._tokenize)
        app.router.add_get("/prefixes", self._prefixes)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def until_running(self, count: int) -> None:
        """Wait until exactly `count` requests are being answered."""
        async with asyncio.timeout(5):
            while self.running != count:
                self.changed.clear()
                await self.changed.wait()

    def _note_running(self, step: int) -> None:
        self.running += step
        self.most_running = max(self.most_running, self.running)
        self.changed.set()

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refuse(request)
        if refusal is not None:
            return refusal
        body = msgspec.json.decode(await request.read(), type=dict[str, Any])
        self.seen.append(Seen(request.path, {name.lower(): value for name, value in request.headers.items()}, body))
        self._note_running(1)
        try:
            return await self._answer(request, body)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self._note_running(-1)

    def _refuse(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _error(401, "wrong token", "invalid_api_key")
        if self.behaviour.draining:
            return _error(503, "This replica is draining.", "draining")
        return None

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        how = self.behaviour
        await asyncio.sleep(how.delay_s)
        if how.crash == "before_first_byte":
            _cut(request)
        if how.hang == "before_first_byte":
            await asyncio.sleep(3600)
        if how.raw_error is not None:
            return web.Response(status=how.status, body=how.raw_error)
        if how.status != 200:
            return _error(how.status, "The fake was told to say this.", "told_so")
        chat = request.path.endswith("chat/completions")
        if not body.get("stream"):
            return web.json_response(_whole(body, chat, how), headers=how.response_headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **how.response_headers})
        await response.prepare(request)
        for index in range(how.events):
            await response.write(b"data: " + msgspec.json.encode(_chunk(body, chat, how, index)) + b"\n\n")
            await asyncio.sleep(how.event_every_s)
        if how.crash == "after_events":
            await response.write(b'data: {"id": "half an eve')
            _cut(request)
        if how.hang == "after_events":
            await asyncio.sleep(3600)
        if how.error_event:
            await response.write(b"data: " + _error_bytes("The engine failed.", "engine_failed") + b"\n\n")
        elif not how.end_without_done:
            usage = f": usage 3 {how.events}\n\n".encode() if USAGE_HEADER in request.headers else b""
            await response.write(usage + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _prefixes(self, request: web.Request) -> web.StreamResponse:
        if self.prefixes is None:
            raise web.HTTPNotFound
        return self._refuse(request) or await self.prefixes(request)

    async def _readyz(self, request: web.Request) -> web.Response:
        return self._refuse(request) or web.json_response({"status": "ready"})

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refuse(request)
        if refusal is not None:
            return refusal
        return web.json_response({"path": request.path, "tokens": [1, 2, 3], "count": 3})


def _cut(request: web.Request) -> None:
    """Drop the connection as a killed process does; what follows in the handler never arrives."""
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError


def _error_bytes(message: str, code: str) -> bytes:
    return msgspec.json.encode(ErrorEnvelope(ErrorBody(message, "overloaded_error", None, code)))


def _error(status: int, message: str, code: str) -> web.Response:
    return web.Response(status=status, body=_error_bytes(message, code), content_type="application/json")


def _whole(body: dict[str, Any], chat: bool, how: Behaviour) -> dict[str, Any]:
    text = how.text * how.events
    part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    usage = {"prompt_tokens": 3, "completion_tokens": how.events, "total_tokens": 3 + how.events}
    choice = {"index": 0, "finish_reason": "stop", **part}
    return {"id": "c-1", "object": kind, "created": 1, "model": body.get("model"), "choices": [choice], "usage": usage}


def _chunk(body: dict[str, Any], chat: bool, how: Behaviour, index: int) -> dict[str, Any]:
    part = {"delta": {"role": "assistant", "content": how.text}} if chat else {"text": how.text}
    kind = "chat.completion.chunk" if chat else "text_completion"
    reason = "stop" if index == how.events - 1 else None
    choice = {"index": 0, "finish_reason": reason, **part}
    return {"id": "c-1", "object": kind, "created": 1, "model": body.get("model"), "choices": [choice]}
