"""The runner's HTTP port: routes, who may use them, and one shape for every failure. Knows nothing of tensors."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from data_plane.runner.access import Access
from data_plane.runner.chat import chat_completions
from data_plane.runner.completions import completions
from data_plane.runner.note import NOTE, Note
from data_plane.runner.prefixes import prefixes
from data_plane.runner.served import ServedModel
from data_plane.runner.takeover import take_over
from data_plane.runner.tokenize import detokenize, tokenize, tokenizer_info
from data_plane.wire.errors import ApiError, not_found, unavailable
from data_plane.wire.keys import Scope
from data_plane.wire.names import REQUEST_ID, TENANT_HEADER
from data_plane.wire.resume import DRAINING_CODE, RESUMABLE_HEADER, RESUME_PATH

MAX_BODY_BYTES = 10_000_000
MOST_STEP_S = 120.0
"""The longest step: of a large model's prompt on a slow CPU. An engine that takes longer is stuck."""

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ModelHandler = Callable[[web.Request, ServedModel], Awaitable[web.StreamResponse]]


@dataclass
class Service:
    """What the port offers now. `model` is None until it is loaded; `busy` counts requests that want tokens."""

    access: Access
    on_drain: Callable[[], None]
    model: ServedModel | None = None
    draining: bool = False
    parked: bool = False
    on_park: Callable[[], None] | None = None
    on_unpark: Callable[[], Awaitable[None]] | None = None
    busy: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    running: list[Note] = field(default_factory=list[Note])
    on_first: Callable[[float, float], None] | None = None
    """Told once, as the first request to get a token ends: when it came and when it got it, on the monotonic clock."""

    def __post_init__(self) -> None:
        self.idle.set()

    def begin(self, note: Note) -> None:
        """One more request wants tokens."""
        self.running.append(note)
        self.busy += 1
        self.idle.clear()

    def end(self, note: Note) -> None:
        """One fewer."""
        self.running = [other for other in self.running if other is not note]
        self.busy -= 1
        self.idle_since = time.monotonic()
        if not self.busy:
            self.idle.set()

    def hand_over(self) -> None:
        """What gateways have here ends so that they go on with it on another replica."""
        for note in self.running:
            if note.is_gateways and note.generation is not None:
                note.generation.end(_leaving())

    def serving(self) -> ServedModel:
        """The model; ApiError 503 while there is none."""
        if self.model is None:
            raise unavailable("The model is still loading.", code="loading", retry_after_s=1)
        return self.model


def _leaving() -> ApiError:
    return unavailable("This replica is going away. Ask again; another one answers.", code=DRAINING_CODE)


# Every path of this port: the scope it needs, `open` for none, `launch` for the launch's token only.
_RULES: dict[str, Scope | Literal["open", "launch"]] = {
    "/healthz": "open",
    "/readyz": "open",
    "/v1/chat/completions": "infer",
    "/v1/completions": "infer",
    "/v1/models": "infer",
    "/tokenize": "infer",
    "/detokenize": "infer",
    "/tokenizer_info": "infer",
    "/metrics": "read",
    "/state": "read",
    "/drain": "launch",
    "/park": "launch",
    "/unpark": "launch",
    "/prefixes": "launch",
    RESUME_PATH: "launch",
}


def make_app(service: Service) -> web.Application:
    """The application. Run it with `handler_cancellation=True`, or requests of clients that left go on."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_envelope, _guard(service)])
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _with_service(service, _readyz))
    app.router.add_post("/v1/chat/completions", _work(service, chat_completions))
    app.router.add_post("/v1/completions", _work(service, completions))
    app.router.add_post(RESUME_PATH, _work(service, take_over))
    app.router.add_post("/tokenize", _with_model(service, tokenize))
    app.router.add_post("/detokenize", _with_model(service, detokenize))
    app.router.add_get("/tokenizer_info", _with_model(service, tokenizer_info))
    app.router.add_get("/v1/models", _with_model(service, _models))
    app.router.add_get("/v1/models/{id:.+}", _with_model(service, _one_model))
    app.router.add_get("/metrics", _with_model(service, _metrics))
    app.router.add_get("/state", _with_service(service, _state))
    app.router.add_post("/drain", _with_service(service, _drain))
    app.router.add_post("/park", _with_service(service, _park))
    app.router.add_post("/unpark", _with_service(service, _unpark))
    app.router.add_get("/prefixes", _with_model(service, prefixes))
    app.on_shutdown.append(_close_journal(service))
    app.on_response_prepare.append(_add_headers)
    return app


@web.middleware
async def _envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request its id, and every failure the same shape."""
    http = request
    given = http.headers.get("x-request-id", "")
    note = http[NOTE] = Note(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
    try:
        return await handler(http)
    except ApiError as error:
        return _error_response(error)
    except web.HTTPException as error:
        return _error_response(_from_http(http, error))
    except (ConnectionError, TimeoutError):
        # the client went away, or takes nothing any more, in the middle of its answer: nobody is left to tell
        raise
    except Exception:  # a fault of ours must not show its insides; the log has them
        log.exception("request failed", request_id=note.request_id, path=http.path)
        message = f"Something went wrong in the runner. Its log has the details under {note.request_id}."
        return _error_response(ApiError(500, message, type="server_error", code="internal_error"))


def _guard(service: Service) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Nothing but the open paths without a key; also what does not exist is not told to strangers."""
        path = "/v1/models" if request.path.startswith("/v1/models/") else request.path
        rule = _RULES.get(path, "infer")
        if rule != "open":
            scope: Scope | None = None if rule == "launch" else rule
            caller = service.access.check(request.headers.get("authorization"), scope, time.time())
            note = request[NOTE]
            note.key = caller.id
            note.tenant = request.headers.get(TENANT_HEADER, "") if caller.tenant is None else caller.tenant
            wanted = request.headers.get(RESUMABLE_HEADER, "") if caller.tenant is None else ""
            note.created = int(wanted) if wanted.isascii() and wanted.isdigit() else None
        return await handler(request)

    return guard


def _with_service(
    service: Service, handler: Callable[[web.Request, Service], Awaitable[web.StreamResponse]]
) -> Handler:
    async def call(http: web.Request) -> web.StreamResponse:
        return await handler(http, service)

    return call


def _with_model(service: Service, handler: ModelHandler) -> Handler:
    async def call(http: web.Request) -> web.StreamResponse:
        return await handler(http, service.serving())

    return call


def _work(service: Service, handler: ModelHandler) -> Handler:
    """Requests that want tokens: refused while draining, counted, and logged once when they end."""

    async def call(http: web.Request) -> web.StreamResponse:
        if service.draining or service.parked:
            raise _leaving()
        model = service.serving()
        service.begin(http[NOTE])
        started_at = time.monotonic()
        try:
            return await handler(http, model)
        except ApiError as error:
            http[NOTE].outcome = error.body.code or str(error.status)
            raise
        finally:
            service.end(http[NOTE])
            _log_end(http.path, http[NOTE], started_at)
            _tell_first(service, http[NOTE], started_at)

    return call


def _tell_first(service: Service, note: Note, came_at: float) -> None:
    if service.on_first is None or note.generation is None:
        return
    firsts = [branch.first_at for branch in note.generation.branches if branch.first_at is not None]
    if firsts:
        service.on_first(came_at, min(firsts))
        service.on_first = None


def _log_end(path: str, note: Note, started_at: float) -> None:
    generation = note.generation
    numbers: dict[str, object] = {}
    if generation is not None:
        firsts = [branch.first_at for branch in generation.branches if branch.first_at is not None]
        numbers = {
            "choices": len(generation.branches),
            "prompt_tokens": sum(len(branch.prompt) for branch in generation.branches),
            "completion_tokens": generation.completion_tokens,
            "ttft_ms": round((min(firsts) - started_at) * 1000, 1) if firsts else None,
        }
    log.info(
        "request ended",
        request_id=note.request_id,
        path=path,
        key=note.key,
        outcome=note.outcome,
        ms=round((time.monotonic() - started_at) * 1000, 1),
        **numbers,
    )


def _error_response(error: ApiError) -> web.Response:
    return web.Response(
        status=error.status, body=error.encode(), content_type="application/json", headers=error.headers
    )


def _from_http(http: web.Request, error: web.HTTPException) -> ApiError:
    if error.status == 413:
        return ApiError(413, f"The body is over {MAX_BODY_BYTES} bytes. Send less.", code="body_too_large")
    if error.status == 404:
        return not_found("path", http.path[:200])
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return ApiError(error.status, f"{error.reason}.", code="http_error", headers=headers)


async def _add_headers(http: web.Request, response: web.StreamResponse) -> None:
    note = http.get(NOTE)
    if note is not None:
        response.headers["x-request-id"] = note.request_id
    response.headers.pop("Server", None)


def _close_journal(service: Service) -> Callable[[web.Application], Awaitable[None]]:
    async def close(_app: web.Application) -> None:
        """Those who wait for news would keep the process from ending."""
        if service.model is not None:
            service.model.engine.journal.close()

    return close


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


async def _healthz(_http: web.Request) -> web.Response:
    return _json({"status": "ok"})


async def _readyz(_http: web.Request, service: Service) -> web.Response:
    stuck_s = service.serving().engine.stuck_s
    if stuck_s > MOST_STEP_S:
        raise unavailable(f"The engine has made no step for {stuck_s:.0f} s.", code="engine_stuck")
    if service.draining or service.parked:
        raise _leaving()
    return _json({"status": "ready"})


def _model_card(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "ebb",
        "max_model_len": model.max_model_len,
    }


async def _models(_http: web.Request, model: ServedModel) -> web.Response:
    return _json({"object": "list", "data": [_model_card(model)]})


async def _one_model(http: web.Request, model: ServedModel) -> web.Response:
    if http.match_info["id"] != model.name:
        raise not_found("model", http.match_info["id"][:200])
    return _json(_model_card(model))


async def _metrics(_http: web.Request, model: ServedModel) -> web.Response:
    return web.Response(body=model.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def _state(_http: web.Request, service: Service) -> web.Response:
    stats = service.serving().engine.stats
    idle_for_s = 0.0 if service.busy else time.monotonic() - service.idle_since
    return _json(
        {
            "running": stats.running,
            "waiting": stats.waiting,
            "kv_usage": stats.kv_usage,
            "idle_for_s": idle_for_s,
            "draining": service.draining,
        }
    )


async def _drain(_http: web.Request, service: Service) -> web.Response:
    service.on_drain()
    return _json({"status": "draining"}, status=202)


async def _park(_http: web.Request, service: Service) -> web.Response:
    service.serving()
    if service.on_park is not None:
        service.on_park()
    return _json({"status": "parking"}, status=202)


async def _unpark(_http: web.Request, service: Service) -> web.Response:
    """Answers when it serves again."""
    service.serving()
    if service.on_unpark is not None:
        try:
            await service.on_unpark()
        except MemoryError as error:
            raise unavailable(f"It cannot serve again: {error}", code="no_memory") from error
    return _json({"status": "ready"})
