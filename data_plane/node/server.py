"""The agent's own HTTP: health, metrics, the logs of its replicas; for other nodes artifacts and the lease. Starts and
stops nothing.

Everything but /healthz and /readyz takes the agent's token (the control plane has it) or a key with scope read; what is
for other nodes takes the token that the control plane made for each of them, and no key.
"""

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import msgspec
import structlog
from aiohttp import web

from data_plane.node.fleet import Fleet
from data_plane.node.logfile import read_on, read_tail
from data_plane.node.metrics import NodeMetrics
from data_plane.node.peers import SERVED, Peers, Word
from data_plane.node.records import NodePaths
from data_plane.wire.errors import ApiError, forbidden, invalid, not_found, unauthenticated, unavailable
from data_plane.wire.keys import bearer
from data_plane.wire.names import REQUEST_ID, is_digest, is_name

log = structlog.get_logger()
OPEN = ("/healthz", "/readyz")
FOR_NODES = ("/artifacts/", "/lease")
MOST_LINES = 10_000
FOLLOW_POLL_S = 0.2
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Server:
    """The routes over one fleet. `is_ready` says whether the control plane knows this node."""

    fleet: Fleet
    paths: NodePaths
    metrics: NodeMetrics
    session: aiohttp.ClientSession
    token: str
    is_ready: Callable[[], bool]
    peers: Peers | None = None
    word: Callable[[], Word] = lambda: Word(None)
    closing: bool = False

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._envelope], client_max_size=64 * 1024)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/lease", self._lease)
        app.router.add_get("/artifacts/{digest}/{file}", self._artifact)
        app.router.add_get("/replicas/{id}/logs", self._logs)
        app.router.add_get("/replicas/{id}/metrics", self._runner_metrics)
        app.on_shutdown.append(self._on_shutdown)
        return app

    async def _on_shutdown(self, _app: web.Application) -> None:
        self.closing = True

    @web.middleware
    async def _envelope(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Request id, key, and the one error shape, also for routes that do not exist."""
        request_id = _request_id(request)
        try:
            self._authorise(request)
            response = await handler(request)
        except ApiError as error:
            response = _render(error)
        except web.HTTPException as error:
            message = f"{request.method} {request.path}: {error.reason}."
            response = _render(ApiError(error.status, message, code="route"))
        except ConnectionResetError:
            raise  # the client has gone: there is nobody to answer
        except Exception:  # the last line of defence: logged in full, told in general
            log.exception("server.fault", request_id=request_id, path=request.path)
            response = _render(ApiError(500, "The node agent failed; its log has the reason.", type="server_error"))
        if not response.prepared:
            response.headers["x-request-id"] = request_id
        return response

    def _authorise(self, request: web.Request) -> None:
        if request.path in OPEN:
            return
        presented = bearer(request.headers.get("authorization"))
        if hmac.compare_digest(presented.encode(), self.token.encode()):
            return
        if request.path.startswith(FOR_NODES):
            if self.peers is not None and self.peers.admits(presented, self.token):
                return
            raise unauthenticated("This address is for the nodes of this platform, with the tokens they were given.")
        record = self.fleet.ring.find(presented, time.time())
        if record is None:
            raise unauthenticated()
        if not record.allows("read"):
            raise forbidden("read")

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        if not self.is_ready():
            raise unavailable("The control plane has not been reached yet.", code="not_registered", retry_after_s=1)
        return web.json_response({"status": "ready"})

    async def _lease(self, _request: web.Request) -> web.Response:
        body = msgspec.json.encode(self.word())
        return web.Response(body=body, content_type="application/json")

    async def _artifact(self, request: web.Request) -> web.StreamResponse:
        digest, file = request.match_info["digest"], request.match_info["file"]
        if not is_digest(digest) or file not in SERVED:
            raise invalid(f"An artifact has a digest and the files {', '.join(SERVED)}.", param="file")
        folder = self.paths.artifacts / digest.replace(":", "-")
        path = folder / file
        if not (folder / SERVED[-1]).is_file() or path.is_symlink() or not path.is_file():
            raise not_found("artifact", digest)
        return web.FileResponse(path, headers={"content-type": "application/octet-stream"})

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = self.metrics.render(self.fleet.observed())
        return web.Response(body=text, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _runner_metrics(self, request: web.Request) -> web.Response:
        replica_id = self._replica_id(request)
        replica = self.fleet.find(replica_id)
        if replica is None:
            raise not_found("replica", replica_id)
        if replica.url is None or replica.phase not in ("ready", "draining"):
            raise unavailable(f"The replica '{replica_id}' is {replica.phase}: it has no metrics.", code="not_running")
        headers = {"authorization": f"Bearer {replica.token}"}
        timeout = aiohttp.ClientTimeout(total=5)
        try:
            async with self.session.get(replica.url + "/metrics", headers=headers, timeout=timeout) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(502, f"The replica '{replica_id}' did not answer.", type="upstream_failed") from error
        if answer.status != 200:
            raise ApiError(502, f"The replica '{replica_id}' answered {answer.status}.", type="upstream_failed")
        return web.Response(body=body, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        replica_id = self._replica_id(request)
        lines = _lines(request.query.get("tail", "200"))
        follow = _flag(request.query.get("follow", "0"))
        path = self.paths.log(replica_id)
        if not path.is_file():
            raise not_found("log of a replica", replica_id)
        content, offset = read_tail(path, lines)
        headers = {
            "content-type": "text/plain; charset=utf-8",
            "x-content-type-options": "nosniff",
            "x-request-id": _request_id(request),
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            await response.write(content)
            while follow:
                last = self._is_over(replica_id)
                content, offset = read_on(path, offset)
                if content:
                    await response.write(content)
                elif last or self.closing or request.transport is None or request.transport.is_closing():
                    break
                else:
                    await asyncio.sleep(FOLLOW_POLL_S)
            await response.write_eof()
        except ConnectionResetError:
            log.info("logs.reader_gone", replica=replica_id)
        return response

    def _is_over(self, replica_id: str) -> bool:
        replica = self.fleet.find(replica_id)
        return replica is None or replica.phase in ("stopped", "failed")

    @staticmethod
    def _replica_id(request: web.Request) -> str:
        replica_id = request.match_info["id"]
        if not is_name(replica_id):
            raise invalid(f"{replica_id[:80]!r} is not a replica id.", param="id")
        return replica_id


def _request_id(request: web.Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _render(error: ApiError) -> web.Response:
    headers = {"content-type": "application/json"} | error.headers
    return web.Response(status=error.status, body=error.encode(), headers=headers)


def _lines(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > MOST_LINES:
        raise invalid(f"'tail' is a number of lines from 0 to {MOST_LINES}, not {text[:40]!r}.", param="tail")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("0", "1", "true", "false"):
        raise invalid(f"'follow' is 1 or 0, not {text[:40]!r}.", param="follow")
    return text in ("1", "true")
