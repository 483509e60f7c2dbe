"""One runner's life: read the spec, load the model, serve it, drain, end. Each phase is told in the status file."""

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path

import msgspec
import structlog
from aiohttp import web

from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Executor
from data_plane.logs import configure_logging
from data_plane.runner.access import Access
from data_plane.runner.chat_template import ChatTemplate
from data_plane.runner.keeping import Keeping, keeping_of
from data_plane.runner.loading import (
    check_artifact,
    in_thread,
    is_of_torch,
    judge,
    load_executor,
    open_tokenizer,
    serve,
)
from data_plane.runner.output import keep_output_alive
from data_plane.runner.parking import Parking
from data_plane.runner.prepared import Prepared
from data_plane.runner.server import Service, make_app
from data_plane.runner.status import StatusFile, process_started_at
from data_plane.runner.tokenizer import Tokenizer
from data_plane.wire.fleet import RunnerSpec, StartFailure

GRACE_S = 30.0
"""From the first SIGTERM to giving up on what still runs."""
WAITED_S = 2.0
"""A first request that comes sooner than this was what the start was for."""
MOVE_S = 5.0
"""From it to handing over what gateways have here: another replica goes on with it, and nobody notices."""

log = structlog.get_logger()

_Loaded = tuple[Executor, EngineConfig, Tokenizer, ChatTemplate | None]


class Runner:
    """Holds what the phases share."""

    def __init__(self, spec: RunnerSpec, started_at: float, prepared: Prepared) -> None:
        self.spec = spec
        self._prepared = prepared
        self.status = StatusFile(spec, started_at)
        self.service = Service(Access(spec.token, Path(spec.keys_path) if spec.keys_path else None), self.drain)
        parking = Parking(self.service, self._on_parked, self._on_back, self._keep)
        self.service.on_park, self.service.on_unpark = parking.park, parking.unpark
        self._keeping: Keeping | None = None
        self._spans: dict[str, float] = {}
        self._mark = started_at
        self._done = asyncio.Event()
        self._code = 0
        self._ready_at = 0.0
        self._signalled = False
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """The exit code: 0 after a drain, 1 after a failed start or a broken engine."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        site = web.AppRunner(
            make_app(self.service), access_log=None, handler_cancellation=True, keepalive_timeout=75, shutdown_timeout=5
        )
        try:
            await self._listen(site)
            await self._load()
            await self._done.wait()
        except Exception as error:  # whatever ends a start must reach the agent as a sentence
            log.exception("the start failed")
            self.status.change(phase="failed", failure=judge(error), spans=self._spans)
            return 1
        finally:
            await site.cleanup()
            if self._keeping is not None:
                await self._keeping.close()
            if self.service.model is not None:
                self.service.model.engine.close()
                self.service.model.pool.shutdown(wait=False, cancel_futures=True)
        if self._code == 0:
            self.status.change(phase="stopped")
        return self._code

    def drain(self) -> None:
        """Refuses new requests from now on, and ends the process when the last one has ended."""
        if self.service.draining:
            return
        if self.service.model is None or (self.service.parked and not self.service.busy):
            # nothing to finish, and a load cannot be interrupted otherwise
            self.status.change(phase="stopped")
            os._exit(0)
        self.service.draining = True
        self.status.change(phase="draining")
        self._spawn(self._end_when_idle())

    async def _listen(self, site: web.AppRunner) -> None:
        await site.setup()
        await web.TCPSite(site, self.spec.host, self.spec.port, backlog=1024).start()
        port = int(site.addresses[0][1])
        self.status.change(phase="starting", url=f"http://{self.spec.host}:{port}")

    async def _load(self) -> None:
        loaded: asyncio.Future[_Loaded] = self._loop.create_future()

        def load() -> None:
            try:
                check_artifact(self.spec)
                tokenizer, template = self._open_text()
                ahead = self._prepared.take_artifact(Path(self.spec.artifact_dir))
                result = (*load_executor(self.spec, self._on_phase, ahead), tokenizer, template)
            except BaseException as error:  # noqa: BLE001  it is raised again in the event loop's thread
                self._loop.call_soon_threadsafe(loaded.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(loaded.set_result, result)

        in_thread(load, "load")
        executor, config, tokenizer, template = await loaded
        self._keeping = keeping_of(self.spec.snapshot, self.spec.spec.artifact, executor)
        model = serve(self.spec, executor, config, tokenizer, self._on_dead, template, self._keeping)
        model.engine.start()
        if self._keeping is not None:
            self._keeping.start(model.engine)
        # everything loaded so far lives as long as the process: the collector need not walk it again
        gc.collect()
        gc.freeze()
        self._span("warm_up" if "load" in self._spans else "load")
        self.service.model = model
        self.service.idle_since = self._ready_at = time.monotonic()
        self.service.on_first = self._on_first
        self.status.change(
            phase="ready", slots=config.max_num_seqs, max_model_len=model.max_model_len, spans=dict(self._spans),
            torch=is_of_torch(executor),
        )  # fmt: skip

    def _open_text(self) -> tuple[Tokenizer, ChatTemplate | None]:
        self._span("import")
        text = self._prepared.take(Path(self.spec.artifact_dir))
        tokenizer = open_tokenizer(self.spec) if text is None else text.tokenizer
        self._span("tokenizer")
        return tokenizer, None if text is None else text.template

    def _on_phase(self, phase: str) -> None:
        """Called in the loading thread, which has the status file to itself until it is done."""
        if phase == "imported":
            self._span("import")
            self.status.change(phase="loading", spans=dict(self._spans))
        elif phase == "mapped":
            self._span("map")
        elif phase == "warming":
            self._span("load")
            self.status.change(phase="warming", spans=dict(self._spans))

    def _on_parked(self) -> None:
        self._spans = {}
        self.status.change(phase="parked", spans={})

    def _on_back(self, seconds: float) -> None:
        self._spans = {"unpark": round(seconds, 4)}
        self.service.idle_since = self._ready_at = time.monotonic()
        self.service.on_first = self._on_first
        self.status.change(phase="ready", spans=dict(self._spans))

    def _on_first(self, came_at: float, first_at: float) -> None:
        """The end of a start as its client sees it. Nobody waited for one whose first request came much later."""
        route_s = came_at - self._ready_at
        if route_s < WAITED_S:
            spans = {"route": round(max(0.0, route_s), 4), "first_token": round(first_at - came_at, 4)}
            self._spans |= spans
            self.status.change(spans=dict(self._spans))

    def _span(self, name: str) -> None:
        now = time.time()
        self._spans[name] = round(self._spans.get(name, 0.0) + max(0.0, now - self._mark), 4)
        self._mark = now

    def _on_signal(self) -> None:
        if self._signalled:
            os._exit(1)
        self._signalled = True
        self.drain()
        self._spawn(self._give_up())

    def _on_dead(self) -> None:
        self._code = 1
        message = "The engine of this runner failed; its log has the details."
        self.status.change(phase="failed", failure=StartFailure(message=message, fatal=False))
        self._done.set()

    async def _keep(self) -> None:
        if self._keeping is not None and self.service.model is not None:
            await self._keeping.save(self.service.model.engine)

    async def _end_when_idle(self) -> None:
        await self.service.idle.wait()
        await self._keep()
        self._done.set()

    async def _give_up(self) -> None:
        await asyncio.sleep(MOVE_S)
        log.info("requests are handed over", count=self.service.busy)
        self.service.hand_over()
        await asyncio.sleep(GRACE_S - MOVE_S)
        log.warning("requests are cut off", count=self.service.busy)
        self._done.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def main() -> int:
    """`python -m data_plane.runner --spec FILE`."""
    parser = argparse.ArgumentParser(prog="data_plane.runner", description="Serves one artifact.")
    parser.add_argument("--spec", required=True, type=Path, help="a RunnerSpec in JSON")
    path: Path = parser.parse_args().spec
    return become(path, process_started_at())


def become(path: str | Path, started_at: float, prepared: Prepared | None = None) -> int:
    """Serves the spec in the file `path` until the end; the process's exit code. `started_at`: when this start began,
    in Unix seconds. `prepared`: what may save it opening its tokenizer."""
    path = Path(path)
    keep_output_alive()
    configure_logging("runner")
    try:
        spec = msgspec.json.decode(path.read_bytes(), type=RunnerSpec)
    except (OSError, msgspec.DecodeError) as error:
        print(f"The spec {path} cannot be read: {error}", file=sys.stderr)
        return 2
    structlog.contextvars.bind_contextvars(replica=spec.replica_id, endpoint=spec.endpoint)

    async def run() -> int:
        return await Runner(spec, started_at, prepared or Prepared()).run()

    return asyncio.run(run())
