"""A fake runner for each test, and the official client that speaks to it."""

from collections.abc import AsyncIterator

import openai
import pytest

from data_plane.runner.tokenizer import Tokenizer
from tests.fakes.served import TOKEN, Fake, fake_runner, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with fake_runner() as running:
        yield running


@pytest.fixture
async def client(fake: Fake) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key=TOKEN, max_retries=0) as made:
        yield made
