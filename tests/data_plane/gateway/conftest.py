"""The fixtures of the gateway's tests: a world that is started, and must be left with empty books."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import aiohttp
import pytest

from data_plane.gateway.app import Gateway
from data_plane.gateway.settings import GatewaySettings
from tests.fakes.control import FakeControl

from .world import SETTINGS, World, eventually


@pytest.fixture
def settings() -> GatewaySettings:
    """Overridden by tests that need other limits."""
    return SETTINGS


@pytest.fixture
async def world(settings: GatewaySettings) -> AsyncIterator[World]:
    """Started, with one `infer` key of tenant `default`; when the test has ended all books must be empty."""
    async with AsyncExitStack() as stack:
        control = await FakeControl().start()
        stack.push_async_callback(control.stop)
        world = World(control, stack)
        world.gateway = Gateway(replace(settings, control_url=control.url))
        await world.gateway.start()
        stack.push_async_callback(world.gateway.stop)
        world.client = await stack.enter_async_context(aiohttp.ClientSession())
        await world.known()
        yield world
        await eventually(lambda: world.gateway.in_flight.total == 0 and world.gateway.demand.total == 0)
        world.gateway.check()
