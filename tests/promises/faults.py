"""A small fleet to break: one gateway, runner processes that can be killed, and clients that write down all they see.

The gateway runs here, with short patience; runners are real ones without a model (`tests/fakes/runner_of_script.py`).
"""

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from data_plane.gateway.app import Gateway
from data_plane.gateway.settings import GatewaySettings, HoldLimits, StreamManners
from data_plane.gateway.vitals import VitalLimits
from data_plane.router.runner_client import Timeouts
from data_plane.wire.fleet import ReplicaSpec, RunnerSpec, RunnerStatus
from data_plane.wire.routes import EndpointRoute, ReplicaRoute
from tests.fakes.control import NODE_KEY, FakeControl
from tests.fakes.served import events_of

ROOT = Path(__file__).parents[2]
TOKEN = "launch-token"
SETTINGS = GatewaySettings(
    control_url="",
    node_key=NODE_KEY,
    name="gateway",
    port=0,
    drain_s=10.0,
    hold=HoldLimits(default_hold_s=20.0, wake_every_s=0.2),
    stream=StreamManners(silent_s=5.0, comment_every_s=0.5, stalled_s=1.0),
    runner=Timeouts(connect_s=1.0, silence_s=60.0),
    vitals=VitalLimits(silent_s=0.4, look_s=0.1, most_missed=2, answer_s=0.6),
)


@dataclass
class Runner:
    """One runner process that is ready."""

    name: str
    process: asyncio.subprocess.Process
    route: ReplicaRoute

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def state(self) -> dict[str, Any]:
        """What GET /state says."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(headers=headers) as client, client.get(self.route.url + "/state") as answer:
            return await answer.json()


@dataclass
class Seen:
    """One request as its client saw it. `events`: when each piece came, in seconds of the loop's clock."""

    status: int = 0
    raw: bytes = b""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    broke: str = ""
    began: float = 0.0
    at: list[float] = field(default_factory=list[float])

    @property
    def outcome(self) -> str:
        """The one way it ended (invariant I1): complete, error_event, http_error; else what is wrong with it."""
        if self.broke:
            return f"broke: {self.broke}"
        if self.status >= 400:
            return "http_error" if "error" in json.loads(self.raw) else f"not an error of ours: {self.raw[:80]!r}"
        if not self.headers["Content-Type"].startswith("text/event-stream"):
            return "complete" if "choices" in json.loads(self.raw) else "an answer without choices"
        last = events_of(self.raw.decode())[-1]
        errors, done = self.raw.count(b'data: {"error"'), self.raw.count(b"data: [DONE]")
        if (errors, done) == (0, 1) and last == "[DONE]":
            return "complete"
        return "error_event" if (errors, done) == (1, 0) and "error" in last else f"{errors} errors and {done} ends"

    @property
    def error_code(self) -> str:
        data = self.raw if self.status >= 400 else self.raw.rpartition(b"data: ")[2]
        return str(json.loads(data)["error"]["code"])

    def said(self) -> dict[int, dict[str, Any]]:
        """By choice its text, how often it had a role, its finish reasons and its log-probabilities."""
        assert b"\nid:" not in self.raw, "a mark came through to the client"
        choices: dict[int, dict[str, Any]] = {}
        names: set[tuple[object, object]] = set()
        chunks: list[Any] = (
            list(events_of(self.raw.decode())) if self.raw.startswith((b"data:", b":")) else [json.loads(self.raw)]
        )
        for chunk in chunks:
            if isinstance(chunk, str):
                continue
            names.add((chunk["id"], chunk["created"]))
            for piece in chunk["choices"]:
                mine = choices.setdefault(piece["index"], {"text": "", "roles": 0, "reasons": [], "logprobs": []})
                delta = piece.get("delta") or piece.get("message") or piece
                mine["text"] += delta.get("content") or delta.get("text") or ""
                mine["roles"] += delta.get("role") is not None
                mine["reasons"] += [piece["finish_reason"]] if piece["finish_reason"] else []
                mine["logprobs"] += (piece.get("logprobs") or {}).get("content", [])
        assert len(names) == 1, names
        return choices


class Fleet:
    """Everything of one test; `close` ends all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = AsyncExitStack()
        self.control = FakeControl()
        self.key = self.control.add_key("infer", "read")
        self.gateway: Gateway
        self.client: aiohttp.ClientSession
        self.runners: list[Runner] = []

    async def start(self, settings: GatewaySettings = SETTINGS) -> None:
        await self.control.start()
        self.stack.push_async_callback(self.control.stop)
        self.gateway = Gateway(replace(settings, control_url=self.control.url))
        await self.gateway.start()
        self.stack.push_async_callback(self.gateway.stop)
        self.client = await self.stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )

    async def close(self) -> None:
        await self.stack.aclose()
        for runner in self.runners:
            if runner.process.returncode is None:
                runner.process.kill()
            await runner.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    async def runner(self, name: str, step_s: float = 0.01, move_s: float = 0.2) -> Runner:
        """A new process, ready; no route names it yet."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "fake.json").write_text(json.dumps({"step_s": step_s, "move_s": move_s}))
        spec = ReplicaSpec(model="m", artifact="sha256:" + "0" * 64, device="cpu", max_model_len=1024, max_num_seqs=128)
        status = folder / "status.json"
        wanted = RunnerSpec(name, "chat", str(folder), TOKEN, str(status), str(folder / "keys.json"), spec)
        (folder / "spec.json").write_bytes(msgspec.json.encode(wanted))
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.fakes.runner_of_script", "--spec", str(folder / "spec.json"),
                cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip
        now: RunnerStatus | None = None
        async with asyncio.timeout(30):
            while now is None or now.phase != "ready":
                await asyncio.sleep(0.02)
                assert process.returncode is None, (folder / "log").read_text()
                now = msgspec.json.decode(status.read_bytes(), type=RunnerStatus) if status.exists() else None
        assert now.url is not None
        made = Runner(name, process, ReplicaRoute(name, now.url, TOKEN, 128))
        self.runners.append(made)
        return made

    async def live(self, *replicas: Runner | ReplicaRoute) -> None:
        """The endpoint `chat` has these; returns when the gateway knows."""
        routes = tuple(one.route if isinstance(one, Runner) else one for one in replicas)
        self.control.put(EndpointRoute("id", "default", "chat", "m", "live", 1_700_000_000, 1024, routes))
        await until(lambda: self.gateway.table.version == self.control.state().version)

    async def ask(self, body: dict[str, Any], url: str = "", path: str = "chat/completions", **headers: str) -> Seen:
        """One request, read to its end."""
        seen = Seen(began=asyncio.get_running_loop().time())
        headers = {"Authorization": f"Bearer {self.key}", **headers}
        where = f"{url or self.url}/e/chat/v1/{path}"
        try:
            async with self.client.post(where, json=body, headers=headers) as answer:
                seen.status, seen.headers = answer.status, dict(answer.headers)
                async for piece in answer.content.iter_any():
                    seen.raw += piece
                    seen.at.append(asyncio.get_running_loop().time())
        except aiohttp.ClientError as error:
            seen.broke = f"{type(error).__name__} {error}"
        return seen

    def begin(self, work: Coroutine[Any, Any, Seen]) -> "asyncio.Task[Seen]":
        return asyncio.get_running_loop().create_task(work)

    async def running(self, count: int, on: int = 1) -> None:
        """Until `count` requests run on at least `on` replicas."""
        book = self.gateway.in_flight
        await until(lambda: book.total == count and sum(book.of_replica(one.name) > 0 for one in self.runners) >= on)

    async def metric(self, name: str) -> float:
        """The sum of a metric of the gateway over its labels."""
        async with self.client.get(self.url + "/metrics", headers={"Authorization": f"Bearer {self.key}"}) as answer:
            lines = (await answer.text()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))

    async def at_rest(self) -> None:
        """Invariant I3: within 5 s of quiet nothing is held any more, here or on a runner that lives."""
        gateway = self.gateway
        await until(lambda: gateway.in_flight.total == 0 and gateway.demand.total == 0 and not gateway.server.running)
        gateway.check()
        assert gateway.activation.waiting("id") == (0, 0)
        for runner in self.runners:
            if runner.process.returncode is None:
                async with asyncio.timeout(5):
                    while (now := await runner.state())["running"] or now["waiting"]:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)


async def until(true: Any, within_s: float = 5.0) -> None:
    """Waits until `true()`; TimeoutError where it does not come to be."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110  processes announce nothing
            await asyncio.sleep(0.01)
