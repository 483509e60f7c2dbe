"""A stand-in for a runner: started like the real one, it writes its status and answers a few routes. No model.

What it does is read from `fake.json` in the artifact's folder, since a runner is given hardly any environment:
    {"fail": "fatal" | "retry", "die_in": "loading", "die_code": 3, "die_signal": 9, "hang_in": "loading",
     "grow_mb_in": ["loading", 200], "grow_mb": 200 (at SIGUSR1), "ignore_sigterm": true, "load_s": 0.05,
     "drain_s": 0.0, "say": "a line for the log", "with_child": true}
`python tests/fakes/runner_process.py --spec FILE`, or `--standby`, as the real one.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web


class FakeRunner:
    """Goes through the phases, serves, drains and exits."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        hooks = Path(spec["artifact_dir"]) / "fake.json"
        self.hooks: dict[str, Any] = json.loads(hooks.read_text()) if hooks.exists() else {}
        self.started_at = time.time()
        self.url: str | None = None
        self.done = asyncio.Event()

    def tell(self, phase: str, failure: dict[str, Any] | None = None) -> None:
        status = {
            "replica_id": self.spec["replica_id"], "pid": os.getpid(), "phase": phase, "started_at": self.started_at,
            "url": self.url, "slots": self.spec["spec"]["max_num_seqs"], "max_model_len": 2048,
            "spans": {"load": 0.01}, "failure": failure,
        }  # fmt: skip
        path = Path(self.spec["status_path"])
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(status))
        scratch.replace(path)

    async def enter(self, phase: str) -> None:
        self.tell(phase)
        if self.hooks.get("grow_mb_in", [None])[0] == phase:
            self.grow(self.hooks["grow_mb_in"][1])
        if self.hooks.get("hang_in") == phase:
            await asyncio.sleep(3600)
        if self.hooks.get("die_in") == phase:
            print(self.hooks.get("say", "about to die"), flush=True)
            if "die_signal" in self.hooks:
                os.kill(os.getpid(), self.hooks["die_signal"])
            os._exit(self.hooks.get("die_code", 3))
        await asyncio.sleep(self.hooks.get("load_s", 0.03))

    def grow(self, megabytes: int) -> None:
        self.memory = b"1" * (megabytes << 20)

    async def drain(self) -> None:
        self.tell("draining")
        await asyncio.sleep(self.hooks.get("drain_s", 0.0))
        self.done.set()

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: self.grow(self.hooks.get("grow_mb", 0)))
        ignore = self.hooks.get("ignore_sigterm", False)
        loop.add_signal_handler(signal.SIGTERM, lambda: None if ignore else self.done.set())
        print(f"fake runner of {self.spec['replica_id']}", sorted(os.environ), flush=True)
        if self.hooks.get("with_child"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # noqa: ASYNC220 - it is a fake
        await self.enter("starting")
        await self.enter("loading")
        if "fail" in self.hooks:
            fatal = self.hooks["fail"] == "fatal"
            self.tell("failed", {"message": "The fake artifact cannot be loaded.", "fatal": fatal})
            return 1
        await self.enter("warming")
        runner = web.AppRunner(self.app(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, self.spec["host"], self.spec["port"])
        await site.start()
        self.url = f"http://{self.spec['host']}:{runner.addresses[0][1]}"
        await self.enter("ready")
        await self.done.wait()
        self.tell("stopped")
        await runner.cleanup()
        return 0

    def app(self) -> web.Application:
        tasks: set[asyncio.Task[None]] = set()

        def allowed(request: web.Request) -> bool:
            return request.headers.get("authorization") == f"Bearer {self.spec['token']}"

        async def healthz(_request: web.Request) -> web.Response:
            return web.json_response({"status": "ok"})

        async def drain(request: web.Request) -> web.Response:
            if not allowed(request):
                return web.Response(status=401)
            tasks.add(asyncio.create_task(self.drain()))
            return web.Response(status=202)

        async def park(request: web.Request) -> web.Response:
            if not allowed(request):
                return web.Response(status=401)
            self.tell("parked" if request.path == "/park" else "ready")
            return web.Response(status=202)

        async def metrics(request: web.Request) -> web.Response:
            return web.Response(text="fake_up 1\n") if allowed(request) else web.Response(status=401)

        app = web.Application()
        app.router.add_get("/healthz", healthz)
        app.router.add_get("/readyz", healthz)
        app.router.add_get("/metrics", metrics)
        app.router.add_post("/drain", drain)
        app.router.add_post("/park", park)
        app.router.add_post("/unpark", park)
        return app


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec")
    parser.add_argument("--standby", action="store_true")
    parser.add_argument("--text", action="append")
    options = parser.parse_args()
    path = options.spec
    if options.standby:
        os.write(0, b"ready\n")
        print(f"{os.getpid()} waits", flush=True)
        line = os.read(0, 65536)
        if not line:
            return 0
        assigned = json.loads(line)
        path = assigned["spec_path"]
        log = os.open(assigned["log_path"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
    spec = json.loads(Path(path).read_text())

    async def run() -> int:
        return await FakeRunner(spec).serve()

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
