"""A gateway over real sockets, between a fake control plane and fake runners."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec

from data_plane.gateway.app import Gateway
from data_plane.gateway.settings import GatewaySettings, HoldLimits, StreamManners
from data_plane.router.runner_client import Timeouts
from data_plane.wire.routes import EndpointRoute
from tests.fakes.control import NODE_KEY, FakeControl
from tests.fakes.runner import FakeRunner


class World:
    """One gateway and all it talks to."""

    def __init__(self, control: FakeControl, stack: AsyncExitStack) -> None:
        self.control = control
        self.stack = stack
        self.gateway: Gateway
        self.client: aiohttp.ClientSession
        self.key = control.add_key("infer")
        self.runners: list[FakeRunner] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    async def runner(self, replica_id: str = "replica-1", slots: int = 32) -> FakeRunner:
        """A started runner that no route names yet."""
        runner = await FakeRunner(replica_id, slots).start()
        self.stack.push_async_callback(runner.stop)
        self.runners.append(runner)
        return runner

    def endpoint(self, name: str = "chat", tenant: str = "default", **fields: Any) -> EndpointRoute:
        """An endpoint at zero, unless `fields` say otherwise."""
        id = f"id-{name}" if tenant == "default" else f"id-{tenant}-{name}"
        route = EndpointRoute(id, tenant, name, "smollm2", "zero", 1_700_000_000, 8192)
        return self.control.put(msgspec.structs.replace(route, **fields))

    async def live(self, *runners: FakeRunner, name: str = "chat") -> EndpointRoute:
        """An endpoint with these runners ready; waits until the gateway knows."""
        route = self.endpoint(name, state="live", replicas=tuple(runner.route for runner in runners))
        await self.known()
        return route

    async def known(self) -> None:
        """Wait until the gateway has the control plane's latest state."""
        await eventually(lambda: self.gateway.table.version == self.control.state().version)

    def post(self, path: str = "/e/chat/v1/chat/completions", body: Any = None, **options: Any) -> Any:
        """A POST with the good key; `headers` are added."""
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return self.client.post(self.url + path, json=body or chat(), headers=headers, **options)

    def get(self, path: str, key: str | None = None) -> Any:
        return self.client.get(self.url + path, headers={"Authorization": f"Bearer {key or self.key}"})


def chat(stream: bool = False, **fields: Any) -> dict[str, Any]:
    """A small good chat request."""
    return {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **fields}


async def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until `condition` holds, or fail."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - tests look from outside, nothing announces it
            await asyncio.sleep(0.005)


SETTINGS = GatewaySettings(
    control_url="",
    node_key=NODE_KEY,
    name="gateway-under-test",
    port=0,
    drain_s=2.0,
    hold=HoldLimits(default_hold_s=10.0, wake_every_s=0.2),
    stream=StreamManners(silent_s=0.3, comment_every_s=0.1),
    runner=Timeouts(connect_s=0.5, silence_s=5.0),
)
