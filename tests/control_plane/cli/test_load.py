"""The load client against a small server whose tokens come at known distances, and its arithmetic alone."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from control_plane.cli.errors import CliError
from control_plane.cli.load import LoadPlan, prompt, run_plan
from control_plane.cli.load_figures import Sample, percentile, summarise

GAP_S = 0.01
TOKENS_PER_WORD = 2
FIRST_TOKENS = 5


@dataclass
class Server:
    """What the server was asked, and how many of the first requests after calibration it refuses."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    refuse: int = 0
    hang_up: int = 0
    """So many requests find their connection closed, as with servers that end one after an answer unsaid."""
    at_once: int = 0
    most_at_once: int = 0
    tells_the_end: bool = False
    counts: bool = False


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    state = Server()

    async def completions(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if state.hang_up and request.transport is not None:
            state.hang_up -= 1
            request.transport.abort()
            return web.Response()
        state.bodies.append(body)
        if len(state.bodies) > 2 and state.refuse:
            state.refuse -= 1
            return web.json_response({"error": {"message": "queue full"}}, status=503)
        state.at_once += 1
        state.most_at_once = max(state.most_at_once, state.at_once)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(GAP_S)
            await response.write(b'data: {"choices": [{"text": "x", "index": 0}]}\n\n')
        if state.tells_the_end:
            end = {"text": None, "index": 0, "finish_reason": "length"}
            await response.write(f"data: {json.dumps({'choices': [end]})}\n\n".encode())
        words = len(body["prompt"].split())
        usage = {"prompt_tokens": FIRST_TOKENS + TOKENS_PER_WORD * words, "completion_tokens": body["max_tokens"]}
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        state.at_once -= 1
        return response

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def metrics(_: web.Request) -> web.Response:
        if not state.counts:
            return web.Response(status=404)
        done = len(state.bodies)
        return web.Response(
            text="# HELP something else\n"
            f'ebb:runner_http_cpu_seconds_total{{model_name="tiny"}} {done}.0\n'
            f'vllm:engine_host_seconds_total{{model_name="tiny"}} {2 * done}.0\n'
            f'vllm:engine_executor_seconds_total{{model_name="tiny"}} {8 * done}.0\n'
        )

    app = web.Application()
    app.router.add_get("/e/x/metrics", metrics)
    app.router.add_post("/e/x/v1/completions", completions)
    app.router.add_get("/e/x/v1/models", models)
    async with TestServer(app) as running:
        state.url = f"http://127.0.0.1:{running.port}/e/x"
        yield state


def _silent(_text: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def plan(server: Server, *concurrency: int, requests: int | None = None) -> LoadPlan:
    return LoadPlan(server.url, "k", None, concurrency, prompt_tokens=65, new_tokens=5, requests_per_case=requests)


async def test_measures_what_the_server_does(server: Server) -> None:
    told: list[tuple[str, int, int]] = []
    one, four = await run_plan(plan(server, 1, 4), lambda text, done, total: told.append((text, done, total)))
    assert (one.requests, one.errors, four.requests, four.errors) == (10, 0, 10, 0)
    assert one.prompt_tokens == 65
    assert one.itl_p50_ms >= 1000 * GAP_S * 0.9
    assert one.ttft_p50_ms >= 1000 * GAP_S * 0.9
    assert four.decode_tps > 1.5 * one.decode_tps
    assert server.most_at_once == 4
    assert told[-1] == ("concurrency 4", 10, 10)
    names = [
        "concurrency",
        "decode_tps",
        "ttft_p50_ms",
        "ttft_p99_ms",
        "itl_p50_ms",
        "itl_p99_ms",
        "requests",
        "errors",
        "total_tps",
    ]
    assert list(one.as_json()) == names


async def test_prompts_are_distinct_and_answers_as_long_as_asked(server: Server) -> None:
    await run_plan(plan(server, 2, requests=6), _silent)
    cases = server.bodies[2:]
    assert len({body["prompt"].split()[0] for body in cases}) == 6
    assert all(body["ignore_eos"] and body["min_tokens"] == 5 and body["model"] == "tiny" for body in cases)


async def test_refused_requests_are_errors_and_nothing_else(server: Server) -> None:
    server.refuse = 3
    (case,) = await run_plan(plan(server, 1, requests=10), _silent)
    assert (case.requests, case.errors) == (10, 3)
    assert case.first_error == "HTTP 503: queue full"
    assert case.decode_tps > 0


async def test_a_connection_that_was_closed_is_tried_once_more_on_another(server: Server) -> None:
    server.hang_up = 1
    (case,) = await run_plan(plan(server, 1, requests=3), _silent)
    assert (case.requests, case.errors, server.hang_up) == (3, 0, 0)
    server.hang_up = 10
    with pytest.raises(CliError, match="cannot be measured"):
        await run_plan(plan(server, 1, requests=3), _silent)
    assert server.hang_up == 8


async def test_a_server_that_is_not_there_is_a_sentence() -> None:
    nowhere = LoadPlan("http://127.0.0.1:1/v1", "", None, (1,), 8, 8, 1)
    with pytest.raises(CliError, match="does not answer"):
        await run_plan(nowhere, _silent)


def test_gaps_are_between_tokens_of_one_request() -> None:
    samples = [
        Sample(sent=0.0, arrivals=[1.0, 1.5, 2.0], new_tokens=3),
        Sample(sent=0.0, arrivals=[3.0, 4.0], new_tokens=2),
        Sample(sent=9.0, error="refused"),
    ]
    case = summarise(2, samples)
    assert case.decode_tps == 5 / 4
    assert (case.ttft_p50_ms, case.itl_p50_ms) == (2000, 500)
    assert (case.requests, case.errors) == (3, 1)


def test_a_case_of_nothing_but_errors_has_no_figures() -> None:
    case = summarise(1, [Sample(sent=0.0, error="refused")])
    assert (case.decode_tps, case.ttft_p50_ms, case.errors) == (0.0, 0.0, 1)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_within_its_values(values: list[float], share: float) -> None:
    ordered = sorted(values)
    assert ordered[0] - 0.001 <= percentile(ordered, share) <= ordered[-1] + 0.001


@given(st.integers(1, 10_000), st.integers(1, 200))
def test_a_prompt_has_its_words_and_is_repeatable(number: int, words: int) -> None:
    assert len(prompt(number, words).split()) == words
    assert prompt(number, words) == prompt(number, words)


def test_the_decode_rate_is_of_the_moments_when_all_streams_decode() -> None:
    slow = Sample(sent=0.0, arrivals=[5.0, 6.0, 7.0, 8.0, 9.0], new_tokens=5)
    early = Sample(sent=0.0, arrivals=[1.0, 2.0, 6.5, 7.5], new_tokens=4)
    case = summarise(2, [slow, early])
    # both decode from 5.0 to 7.5: 6.0 and 7.0 of one, 6.5 and 7.5 of the other
    assert case.decode_tps == 4 / 2.5
    assert case.total_tps == 1.0


def test_several_tokens_in_one_piece_of_text_count_as_many() -> None:
    case = summarise(1, [Sample(sent=0.0, arrivals=[1.0, 2.0], new_tokens=10)])
    assert case.decode_tps == 5.0


async def test_an_event_that_only_tells_the_end_is_no_token(server: Server) -> None:
    server.tells_the_end = True
    (case,) = await run_plan(plan(server, 1, requests=2), _silent)
    assert case.errors == 0
    assert case.itl_p50_ms >= 1000 * GAP_S * 0.9
    assert case.as_json()["decode_tps"] < 1 / GAP_S
    assert "http_share" not in case.as_json()


async def test_shares_of_a_step_come_from_the_servers_counters(server: Server) -> None:
    server.counts = True
    (case,) = await run_plan(plan(server, 1, requests=3), _silent)
    # per request: 1 s of HTTP, 2 s of the engine's Python, 8 s of the model
    assert (case.http_share, case.host_share) == (0.1, 0.2)
