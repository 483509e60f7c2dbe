"""A node agent and a gateway by plain HTTP calls, with no process behind them: what a test says of a replica is so."""

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog.tables import ArtifactTable, ModelTable
from data_plane.wire.fleet import (
    DesiredReplica,
    DesiredState,
    Device,
    NodeRegistration,
    NodeReport,
    NodeWelcome,
    ObservedReplica,
    ReplicaPhase,
)
from data_plane.wire.routes import DemandReport, EndpointDemand, EndpointRoute, GatewayState, WakeAnswer, WakeRequest

GIB = 1 << 30


async def add_model(session: AsyncSession, tenant_id: UUID, name: str = "tiny", **changes: Any) -> ModelTable:
    """A model as its import would have left it, with its plain artifact where it is ready."""
    facts: dict[str, Any] = {
        "source": "pypi:tiny",
        "status": "ready",
        "architecture": "llama",
        "parameters": 135_000_000,
        "context_length": 8192,
        "vocab_size": 49_152,
        "source_sha256": "c" * 64,
    }
    row = ModelTable(tenant_id=tenant_id, name=name, **{**facts, **changes})
    session.add(row)
    await session.flush()
    if row.status == "ready":
        await add_artifact(session, row)
    return row


async def add_artifact(session: AsyncSession, model: ModelTable, quantization: str = "none", **changes: Any) -> None:
    """An artifact as its import would have left it."""
    facts: dict[str, Any] = {
        "digest": "sha256:" + {"none": "a", "int8": "8", "int4": "4", "fp8": "f"}[quantization] * 64,
        "bytes": (270 << 20) // {"none": 1, "int8": 2, "int4": 4, "fp8": 2}[quantization],
        "dtype": "bfloat16",
        "kv_bytes_per_token": 23_040,
    }
    session.add(ArtifactTable(model_id=model.id, quantization=quantization, **{**facts, **changes}))
    await session.flush()


@dataclass
class FakeAgent:
    """What an agent of one node knows: its epoch, and the replicas that it claims to have."""

    client: httpx.AsyncClient
    key: str
    name: str = "box"
    memory_bytes: int = 64 * GIB
    gpus: int = 0
    machine: str = ""
    node_id: str = ""
    epoch: int = 0
    version: str = ""
    gone: tuple[str, ...] = ()
    replicas: dict[str, ObservedReplica] = field(default_factory=dict)

    async def register(self) -> NodeWelcome:
        """Presents the node, and notes what is desired so far: the next long poll waits for something else."""
        gpus = [Device("cuda", index, "A GPU", 80 * GIB, 80 * GIB) for index in range(self.gpus)]
        devices = (Device("cpu", 0, "cpu", self.memory_bytes, self.memory_bytes), *gpus)
        node = NodeRegistration(
            self.name,
            "127.0.0.1",
            "http://127.0.0.1:9",
            "agent-token",
            devices,
            2,
            self.memory_bytes,
            "0.1.0",
            1e9,
            self.machine,
            self.epoch,
        )
        answer = await self._send("POST", "/internal/v1/nodes/register", node)
        assert answer.status_code == 200, answer.text
        welcome = msgspec.json.decode(answer.content, type=NodeWelcome)
        self.node_id, self.epoch = welcome.node_id, welcome.epoch
        self.key = welcome.credential.token if welcome.credential else self.key
        await self.desired()
        return welcome

    async def desired(self, wait_s: float = 0.0) -> tuple[DesiredReplica, ...]:
        """What the control plane wants; waits for a change."""
        path = f"/internal/v1/nodes/{self.node_id}/desired?version={self.version}&wait={wait_s}"
        answer = await self._send("GET", path)
        assert answer.status_code == 200, answer.text
        state = msgspec.json.decode(answer.content, type=DesiredState)
        self.version, self.gone = state.version, state.gone
        return state.replicas

    async def report(self, epoch: int | None = None) -> httpx.Response:
        """Tells all it has."""
        body = NodeReport(self.epoch if epoch is None else epoch, self.memory_bytes, tuple(self.replicas.values()))
        return await self._send("POST", f"/internal/v1/nodes/{self.node_id}/report", body)

    async def say(self, replica: DesiredReplica, phase: ReplicaPhase, **facts: Any) -> None:
        """Reports that a replica is in `phase`."""
        fresh = ObservedReplica(replica.id, replica.generation, phase, wanted=replica)
        known = self.replicas.get(replica.id, fresh)
        self.replicas[replica.id] = msgspec.structs.replace(known, phase=phase, **facts)
        answer = await self.report()
        assert answer.status_code == 204, answer.text

    async def make_ready(self, replica: DesiredReplica) -> None:
        """Takes it through all phases to ready."""
        await self.say(replica, "starting", pid=4242)
        await self.say(replica, "loading", spans={"spawn": 0.1, "import": 1.5})
        spans = {"spawn": 0.1, "import": 1.5, "load": 0.3, "warmup": 0.2}
        facts: dict[str, Any] = {"token": "t" * 16, "slots": 32, "spans": spans, "memory_bytes": 500 << 20}
        await self.say(replica, "ready", url="http://127.0.0.1:17999", **facts)

    async def work(self) -> None:
        """Does for ever what an agent does, with replicas that start and drain at once."""
        while True:
            wanted = await self.desired(wait_s=5)
            names = {replica.id for replica in wanted}
            self.replicas = {id: seen for id, seen in self.replicas.items() if id in names}
            for replica in wanted:
                seen = self.replicas.get(replica.id)
                if replica.intent == "run" and seen is None:
                    await self.make_ready(replica)
                elif replica.intent != "run" and (seen is None or seen.phase != "stopped"):
                    await self.say(replica, "draining")
                    await self.say(replica, "stopped")

    async def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        content = None if body is None else msgspec.json.encode(body)
        return await self.client.request(method, path, headers=headers, content=content)


@dataclass
class FakeGateway:
    """What a gateway asks and tells."""

    client: httpx.AsyncClient
    key: str
    name: str = "gateway-1"
    version: str = ""

    async def state(self, wait_s: float = 0.0) -> GatewayState:
        """Routes and keys; waits for a change."""
        path = f"/internal/v1/gateway/state?version={self.version}&wait={wait_s}"
        answer = await self.client.get(path, headers=self._headers())
        assert answer.status_code == 200, answer.text
        state = msgspec.json.decode(answer.content, type=GatewayState)
        self.version = state.version
        return state

    async def route(self, name: str = "chat") -> EndpointRoute:
        """One endpoint's route, now."""
        state = await self.state()
        return next(route for route in state.endpoints if route.name == name)

    async def wait_route(self, wanted: str, name: str = "chat", timeout_s: float = 20.0) -> EndpointRoute:
        """Follows the long poll until the endpoint is in state `wanted`."""
        async with asyncio.timeout(timeout_s):
            self.version = ""
            while True:
                state = await self.state(wait_s=5)
                route = next((route for route in state.endpoints if route.name == name), None)
                if route is not None and route.state == wanted:
                    return route

    async def wake(self, endpoint_id: str, waiting: int = 1, again_s: float = 0.0) -> WakeAnswer:
        """Asks for a start."""
        body = WakeRequest(self.name, "request-1", waiting, again_s)
        path = f"/internal/v1/endpoints/{endpoint_id}/wake"
        answer = await self.client.post(path, headers=self._headers(), content=msgspec.json.encode(body))
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=WakeAnswer)

    async def demand(self, endpoint_id: str, running: int = 0, waiting: int = 0, idle_for_s: float = 0.0) -> None:
        """Tells the work there is."""
        body = DemandReport(self.name, (EndpointDemand(endpoint_id, running, waiting, idle_for_s),))
        answer = await self.client.post(
            "/internal/v1/gateway/demand", headers=self._headers(), content=msgspec.json.encode(body)
        )
        assert answer.status_code == 204, answer.text

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
