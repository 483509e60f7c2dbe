"""Fixtures of the node agent's tests: a home, a fake control plane, and no runner left behind."""

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import pytest_asyncio

from data_plane.node.cleanup import stop_all
from tests.fakes.node_control import FakeControl


@pytest.fixture
def home(tmp_path: Path) -> Generator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    stop_all(folder, grace_s=0.0)


@pytest_asyncio.fixture
async def control() -> AsyncGenerator[FakeControl]:
    fake = FakeControl()
    await fake.start()
    yield fake
    await fake.stop()
