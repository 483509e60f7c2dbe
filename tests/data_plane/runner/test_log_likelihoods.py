"""lm-eval's `local-completions` protocol on a real model: the endpoint scores texts exactly as the engine does alone.

lm-eval sends lists of token ids and asks for their echo with log-probabilities, one new token and temperature 0. It
then sums the log-probabilities from the end of the context to the last echoed token, and calls a text greedy where
each of its tokens is the likeliest at its place.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from data_plane.engine.engine import Engine
from data_plane.engine.outputs import TokenLogprobs
from data_plane.engine.sampling import SamplingParams
from data_plane.execution import Loaded, LoadOptions, load
from data_plane.runner.access import Access
from data_plane.runner.engine_loop import EngineLoop
from data_plane.runner.metrics import Metrics
from data_plane.runner.served import ServedModel
from data_plane.runner.server import Service, make_app
from data_plane.runner.tokenizer import Tokenizer

TOKEN = "launch-secret"
TOLERANCE = 1e-4
"""Natural log, of the sum over a continuation."""
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a small green vegetable"),
    ("Water boils at a temperature of one hundred", " degrees"),
    ("Question: What is two plus two?\nAnswer:", " four, naïve 😀"),
    ("Once", " upon a time, there was a little girl who lived in a small house near the forest."),
]


@dataclass(frozen=True)
class Score:
    """What lm-eval keeps of one continuation."""

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Request:
    """A context and its continuation as tokens, and where the continuation begins."""

    tokens: list[int]
    begins: int


@pytest.fixture(scope="module")
def loaded(smollm2_artifact: Path) -> Loaded:
    options = LoadOptions(dtype="float32", max_model_len=256, max_num_seqs=4, kv_cache_bytes=100 << 20, threads=1)
    return load(smollm2_artifact, options)


@pytest.fixture(scope="module")
def tokenizer(smollm2_artifact: Path) -> Tokenizer:
    return Tokenizer.open(smollm2_artifact)


@pytest.fixture(scope="module")
def requests(tokenizer: Tokenizer) -> list[Request]:
    made: list[Request] = []
    for context, continuation in PAIRS:
        begins = tokenizer.encode(context)
        made.append(Request([*begins, *tokenizer.encode(continuation, add_special_tokens=False)], len(begins)))
    return made


@pytest.fixture(scope="module")
def in_process(loaded: Loaded, requests: list[Request]) -> list[Score]:
    """Each text alone in an engine of its own."""
    return [_score_alone(loaded, request) for request in requests]


def _score_alone(loaded: Loaded, request: Request) -> Score:
    engine = Engine(loaded.config, loaded.executor)
    engine.add("only", request.tokens, SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=1))
    found: Sequence[TokenLogprobs | None] = ()
    while engine.has_work:
        for output in engine.step():
            found = output.prompt_logprobs or found
    entries = [entry for entry in found[request.begins :] if entry is not None]
    assert [entry.token_id for entry in entries] == request.tokens[request.begins :]
    return Score(sum(entry.logprob for entry in entries), all(entry.token_id == entry.top[0][0] for entry in entries))


@pytest.fixture
async def url(loaded: Loaded, tokenizer: Tokenizer) -> AsyncIterator[str]:
    engine = Engine(loaded.config, loaded.executor)
    metrics = Metrics("smollm2")
    loop = EngineLoop(engine, on_step=metrics.step)
    metrics.watch(lambda: loop.stats)
    config = loaded.config
    model = ServedModel("smollm2", config.max_model_len, config.vocab_size, tokenizer, None, loop, metrics)
    service = Service(Access(TOKEN, None), lambda: None, model=model)
    runner = web.AppRunner(make_app(service), access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    loop.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/completions"
    finally:
        await runner.cleanup()
        loop.close()
        model.pool.shutdown()
        engine.check()


async def _ask(url: str, requests: Sequence[Request], max_tokens: int) -> list[Score]:
    body = {
        "model": "smollm2",
        "prompt": [request.tokens for request in requests],
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
        session.post(url, json=body) as response,
    ):
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    assert len(choices) == len(requests)
    return [_parse(choice, request, max_tokens) for choice, request in zip(choices, requests, strict=True)]


def _parse(choice: dict[str, Any], request: Request, max_tokens: int) -> Score:
    """As lm-eval does, which leaves the new token out by its place."""
    block = choice["logprobs"]
    end = len(block["token_logprobs"]) - max_tokens
    assert end == len(request.tokens)
    logprobs: list[float] = block["token_logprobs"][request.begins : end]
    tops: list[dict[str, float]] = block["top_logprobs"][request.begins : end]
    assert block["token_logprobs"][0] is None
    is_greedy = all(own == max(top.values()) for own, top in zip(logprobs, tops, strict=True))
    return Score(sum(logprobs), is_greedy)


@pytest.mark.parametrize("max_tokens", [1, 0])
async def test_the_endpoint_scores_as_the_engine_does(
    url: str, requests: list[Request], in_process: list[Score], max_tokens: int
) -> None:
    together = await _ask(url, requests, max_tokens)
    one_by_one = [score for request in requests for score in await _ask(url, [request], max_tokens)]
    for scores in (together, one_by_one):
        for score, exact in zip(scores, in_process, strict=True):
            assert abs(score.log_likelihood - exact.log_likelihood) < TOLERANCE
            assert score.is_greedy == exact.is_greedy


def test_the_scores_make_sense(in_process: list[Score]) -> None:
    paris, vegetable, degrees, *_ = in_process
    assert paris.is_greedy and not vegetable.is_greedy
    assert paris.log_likelihood > -2 > vegetable.log_likelihood
    assert degrees.log_likelihood > -2
