"""Promise: whatever clients do, the gateway stays bounded, fair and honest. A real gateway over real sockets between
runners and a control plane that are fakes, so that each fault can be made exactly and the books looked into.

F30 clients that hang up in droves, F33 a herd on a sleeping model, F36 bodies that are no good, F41 an endpoint that is
deleted under load. After each: nothing in flight, nothing in line, nothing counted as work.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_plane.gateway.app import Gateway
from data_plane.gateway.settings import HoldLimits
from tests.data_plane.gateway.world import SETTINGS, World, chat, eventually
from tests.fakes.control import FakeControl

pytestmark = pytest.mark.timeout(60)
LINE = 120


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A gateway whose lines hold LINE requests. At the end all books must be empty."""
    async with AsyncExitStack() as stack:
        control = await FakeControl().start()
        stack.push_async_callback(control.stop)
        world = World(control, stack)
        hold = HoldLimits(default_hold_s=30, most_requests=LINE, wake_every_s=0.2)
        world.gateway = Gateway(replace(SETTINGS, control_url=control.url, hold=hold))
        await world.gateway.start()
        stack.push_async_callback(world.gateway.stop)
        connector = aiohttp.TCPConnector(limit=0)
        world.client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        await world.known()
        yield world
        gateway = world.gateway
        await eventually(lambda: gateway.in_flight.total == gateway.demand.total == gateway.server.running == 0)
        assert gateway.limits.running == 0
        gateway.check()


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    code: str | None
    retry_after: str | None


async def ask(world: World, key: str, seed: int, name: str = "chat") -> Answer:
    headers = {"Authorization": f"Bearer {key}"}
    async with world.post(f"/e/{name}/v1/chat/completions", chat(model=name, seed=seed), headers=headers) as response:
        body = await response.json()
        code = body["error"]["code"] if "error" in body else None
        return Answer(response.status, code, response.headers.get("retry-after"))


def waiting(world: World, name: str = "chat") -> int:
    return world.gateway.activation.waiting(f"id-{name}")[0]


class TestHerd:
    """F33: far more requests than can wait, for a model that sleeps and takes long to load."""

    async def test_one_start_a_bounded_line_shares_and_a_paced_release(self, world: World) -> None:
        runner = await world.runner(slots=4)
        runner.behaviour.delay_s = 0.005
        parties = {"a": world.key, "b": world.control.add_key("infer"), "c": world.control.add_key("infer")}
        world.endpoint()
        await world.known()
        starts: list[str] = []

        def on_wake(endpoint_id: str) -> None:
            if world.control.endpoints[endpoint_id].state == "zero":
                starts.append(endpoint_id)
                world.control.change(endpoint_id, state="waking", phase="loading", eta_s=20.0)

        world.control.on_wake = on_wake
        asked: dict[str, list[asyncio.Task[Answer]]] = {}
        for number, (party, size) in enumerate((("a", 300), ("b", 60), ("c", 30))):
            seeds = range(1000 * number, 1000 * number + size)
            asked[party] = [asyncio.create_task(ask(world, parties[party], seed)) for seed in seeds]
            await eventually(lambda tasks=asked[party]: sum(not task.done() for task in tasks) <= LINE, within_s=20)
            await eventually(lambda: waiting(world) == sum(not t.done() for ts in asked.values() for t in ts), 20)
            assert waiting(world) <= LINE
        held = {party: sum(not task.done() for task in tasks) for party, tasks in asked.items()}
        assert held["a"] == LINE * 3 // 4, "one that comes first and in droves leaves a quarter to others"
        assert held["b"] >= 15 and held["c"] >= 4, f"whoever comes later finds room: {held}"

        refused = [task.result() for tasks in asked.values() for task in tasks if task.done()]
        assert {(one.status, one.code) for one in refused} == {(503, "queue_full")}
        again_s = [int(one.retry_after or 0) for one in refused]
        assert min(again_s) >= 10 and max(again_s) <= 40, "what such starts take, and up to as much again"
        assert len(set(again_s)) > 5, "they must not all come back at once"
        assert len(starts) == 1 and world.control.most_wakes_in_flight == 1 and runner.seen == []

        world.control.change("id-chat", state="live", phase=None, eta_s=None, replicas=(runner.route,))
        answers = [answer for tasks in asked.values() for answer in await asyncio.gather(*tasks)]
        assert sum(answer.status == 200 for answer in answers) == sum(held.values()) == len(runner.seen)
        seeds = [seen.body["seed"] for seen in runner.seen]
        assert len(set(seeds)) == len(seeds), "nothing is sent twice"
        assert runner.most_running <= 4 + 2, "released at the pace of its slots, and a little ahead"
        first = Counter("abc"[seed // 1000] for seed in seeds[: 3 * held["c"]])
        assert min(first.values()) >= held["c"] - 2, f"while all wait, all are served alike: {first}"

    async def test_two_thousand_in_one_moment_are_all_answered(self, world: World) -> None:
        runner = await world.runner(slots=8)
        world.endpoint()
        await world.known()
        tasks = [asyncio.create_task(ask(world, world.key, seed)) for seed in range(2_000)]
        held = LINE * 3 // 4
        await eventually(lambda: sum(task.done() for task in tasks) == 2_000 - held, within_s=20)
        await eventually(lambda: len(world.control.wakes) > 0)
        assert waiting(world) == held and world.control.most_wakes_in_flight == 1
        world.control.change("id-chat", state="live", replicas=(runner.route,))
        outcomes = Counter((one.status, one.code) for one in await asyncio.gather(*tasks))
        assert outcomes == {(200, None): held, (503, "queue_full"): 2_000 - held}
        assert len(runner.seen) == held

    async def test_a_busy_model_sheds_what_it_cannot_take(self, world: World) -> None:
        runner = await world.runner(slots=2)
        runner.behaviour.hang = "before_first_byte"
        await world.live(runner)
        other = world.control.add_key("infer")
        await world.known()
        tasks = [asyncio.create_task(ask(world, world.key, seed)) for seed in range(LINE + 50)]
        await eventually(lambda: sum(task.done() for task in tasks) == LINE + 50 - 90 - 4, within_s=20)
        await runner.until_running(4)
        assert waiting(world) == 90, "two run, two are ready to, the rest waits here"
        assert {task.result().code for task in tasks if task.done()} == {"queue_full"}
        async with world.post(headers={"Authorization": f"Bearer {other}", "x-ebb-hold-timeout": "0"}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "endpoint_saturated")
            assert (response.headers["x-ebb-cold-start"], world.control.wakes) == ("0", [])
        assert 'ebb_gateway_queue_depth{endpoint="chat"} 90.0' in world.gateway.metrics.render().decode()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        metrics = world.gateway.metrics.render().decode()
        assert f'ebb_gateway_rejections_total{{reason="queue_full"}} {LINE + 50 - 90 - 4}.0' in metrics
        assert 'ebb_gateway_rejections_total{reason="endpoint_saturated"} 1.0' in metrics


class TestHangingUp:
    """F30: clients that go, while they wait for a start, while they wait in line, and in mid-stream."""

    async def test_places_are_filled_again_and_every_going_is_counted_once(self, world: World) -> None:
        runner = await world.runner(slots=8)
        runner.behaviour.events, runner.behaviour.event_every_s = 10_000, 0.02
        await world.live(runner)
        world.endpoint("cold")
        await world.known()
        took: list[int] = []

        async def stream(few: int) -> None:
            async with world.post(body=chat(stream=True)) as response:
                async for _ in response.content:
                    few -= 1
                    if few == 0:
                        took.append(1)
                        await asyncio.sleep(3600)

        live = [asyncio.create_task(stream(1 + number % 5)) for number in range(60)]
        cold = [asyncio.create_task(ask(world, world.key, seed, "cold")) for seed in range(40)]
        await eventually(lambda: (runner.running, waiting(world), waiting(world, "cold")) == (10, 50, 40))
        await eventually(lambda: len(took) == 10)
        gone = 0
        while gone < 40:  # those that read their few tokens hang up, and those behind them come on
            reading = live[gone : gone + 10]
            for task in reading:
                task.cancel()
            gone += 10
            await eventually(lambda count=gone: runner.aborted == count, within_s=5)
            await eventually(lambda left=50 - gone: (runner.running, waiting(world)) == (10, left))
        for task in (*live[gone:], *cold):  # the rest all at once: in mid-stream, in line and before any start
            task.cancel()
        ended = await asyncio.gather(*live, *cold, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        await eventually(lambda: runner.running == 0 and world.gateway.server.running == 0)
        assert (waiting(world), waiting(world, "cold")) == (0, 0)
        metrics = world.gateway.metrics.render().decode()
        assert 'ebb_gateway_cancellations_total{type="running"} 50.0' in metrics
        assert 'ebb_gateway_cancellations_total{type="waiting"} 50.0' in metrics
        await asyncio.sleep(0.05)  # a wake may have been on its way
        wakes = len(world.control.wakes)
        await asyncio.sleep(0.4)
        assert len(world.control.wakes) == wakes, "nobody waits: nothing is woken any more"
        assert all(one.running == one.waiting == 0 for one in world.control.demand[-1].endpoints)
        runner.behaviour.events = 2
        assert (await ask(world, world.key, 1)).status == 200


NAMED: list[tuple[bytes, str]] = [
    (b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}', "content"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "content"),
    (b'{"messages": [{"role": "user", "content": "a\x00b"}]}', "content"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}', "temperature"),
    (b'{"messages": [{"role": "user", "content": "x"}], "top_p": 1e999}', "top_p"),
    (b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 400 + b"}", "seed"),
    (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999999999999999999}', "max_tokens"),
    (b'{"messages": [{"role": "user", "content": "x"}], "n": 1.5}', "n"),
    (b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"\\u0000": 1}}', "logit_bias"),
    (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", "messages"),
    (b'{"messages": [{"role": "user", "content": ' + b'[{"a":' * 5000, "messages"),
    (b'{"messages": [{"role": "user", "content": "x"}], "tools": ' + b"[" * 5000, "tools"),
]
TEXT = st.text(st.characters(codec=None), max_size=12)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KNOWN = ("messages", "model", "n", "stop", "seed", "logit_bias", "stream", "max_tokens", "top_p", "tools", "priority")
FIELDS = st.dictionaries(st.sampled_from(KNOWN), VALUE, max_size=3)


async def send(world: World, body: bytes) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {world.key}", "x-ebb-hold-timeout": "0"}
    async with world.client.post(world.url + "/e/chat/v1/chat/completions", data=body, headers=headers) as response:
        error = (await response.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return response.status, error


@pytest.mark.parametrize(("body", "field"), NAMED, ids=[field + str(i) for i, (_, field) in enumerate(NAMED)])
async def test_bad_bodies_are_refused_with_the_field(world: World, body: bytes, field: str) -> None:
    """F36: a 400 that names it, and nothing is woken."""
    world.endpoint()
    await world.known()
    status, error = await send(world, body)
    assert (status, error["type"]) == (400, "invalid_request_error"), error
    assert field in (error["param"] or ""), error
    assert world.control.wakes == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=FIELDS, cut=st.integers(0, 400), junk=st.binary(max_size=6))
async def test_no_body_is_a_fault_of_ours(world: World, fields: dict[str, Any], cut: int, junk: bytes) -> None:
    """F36: never a 5xx but the 503 of an endpoint that sleeps and may not be waited for."""
    world.endpoint()
    await world.known()
    whole = json.dumps({**chat(), **fields}).encode()
    for body in (whole, whole[:cut] + junk + whole[cut:], whole[:cut]):
        status, error = await send(world, body)
        good = status == 503 and error["code"] == "model_loading"
        assert status in (400, 404) or good, (status, body, error)


class TestDeleted:
    """F41: an endpoint is deleted under load."""

    async def test_what_runs_ends_well_what_waits_and_what_comes_is_told(self, world: World) -> None:
        runner = await world.runner(slots=2)
        runner.behaviour.events, runner.behaviour.event_every_s = 10, 0.05
        await world.live(runner)
        world.endpoint("cold")
        await world.known()

        async def stream() -> str:
            async with world.post(body=chat(stream=True)) as response:
                assert response.status == 200
                return await response.text()

        running = [asyncio.create_task(stream()) for _ in range(4)]
        await eventually(lambda: runner.running == 4)
        held = [asyncio.create_task(ask(world, world.key, seed)) for seed in range(10)]
        held += [asyncio.create_task(ask(world, world.key, seed, "cold")) for seed in range(10)]
        await eventually(lambda: (waiting(world), waiting(world, "cold")) == (10, 10))
        world.control.remove("id-chat")
        world.control.remove("id-cold")
        gone = Answer(404, "endpoint_not_found", None)
        assert await asyncio.gather(*held) == [gone] * 20
        assert await ask(world, world.key, 1) == gone
        for text in await asyncio.gather(*running):
            assert (text.count("data: "), text.endswith("data: [DONE]\n\n")) == (11, True)
        assert len(runner.seen) == 4 and runner.aborted == 0
