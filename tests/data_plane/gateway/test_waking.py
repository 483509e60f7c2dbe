"""Hold and wake: requests to sleeping endpoints, and every way in which waiting can end."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from data_plane.gateway.settings import GatewaySettings, HoldLimits
from tests.fakes.runner import FakeRunner

from .world import SETTINGS, World, chat, eventually


def wake_with(world: World, runner: FakeRunner, after_s: float = 0.1) -> None:
    """The first wake makes the endpoint live with this runner, a little later; its phases are shown before."""

    def on_wake(endpoint_id: str) -> None:
        if world.control.endpoints[endpoint_id].state == "zero":
            world.control.change(endpoint_id, state="waking", phase="loading", eta_s=after_s)
            loop = asyncio.get_running_loop()
            loop.call_later(after_s, lambda: world.control.change(endpoint_id, state="live", replicas=(runner.route,)))

    world.control.on_wake = on_wake


async def fetch(world: World, **options: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    async with world.post(**options) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, await response.json()


async def test_twenty_at_once_wake_once(world: World) -> None:
    runner = await world.runner(slots=4)
    runner.behaviour.delay_s = 0.02
    world.endpoint()
    await world.known()
    wake_with(world, runner)
    answers = await asyncio.gather(*(fetch(world) for _ in range(20)))
    assert [status for status, _, _ in answers] == [200] * 20
    assert all(headers["x-ebb-cold-start"] == "1" for _, headers, _ in answers)
    assert all(int(headers["x-ebb-wake-ms"]) >= 50 for _, headers, _ in answers)
    assert world.control.most_wakes_in_flight == 1
    assert len(world.control.wakes) <= 2
    assert runner.most_running <= 4 + 2, "waiters must be released at the pace of the slots, and a little ahead"
    async with world.post() as response:
        assert response.headers["x-ebb-cold-start"] == "0"


async def test_oldest_first(world: World) -> None:
    runner = await world.runner(slots=1)
    world.endpoint()
    await world.known()
    tasks: list[asyncio.Task[Any]] = []
    for index in range(5):
        tasks.append(asyncio.create_task(fetch(world, body=chat(seed=index))))
        await eventually(lambda count=index + 1: world.gateway.activation.waiting("id-chat")[0] == count)
    world.control.change("id-chat", state="live", replicas=(runner.route,))
    await asyncio.gather(*tasks)
    assert [seen.body["seed"] for seen in runner.seen] == [0, 1, 2, 3, 4]


async def test_failure_fails_all_waiters_at_once(world: World) -> None:
    world.endpoint()
    await world.known()
    waiters = [asyncio.create_task(fetch(world)) for _ in range(5)]
    await eventually(lambda: world.gateway.activation.waiting("id-chat")[0] == 5)
    await eventually(lambda: len(world.control.wakes) >= 1)
    world.control.change("id-chat", state="failed", reason="The artifact is truncated", retry_at=time.time() + 60)
    for status, headers, body in await asyncio.gather(*waiters):
        assert (status, body["error"]["code"]) == (503, "model_failed")
        assert headers["x-should-retry"] == "false"
        assert "The artifact is truncated" in body["error"]["message"]
    status, headers, body = await fetch(world)
    assert (status, body["error"]["code"]) == (503, "model_failed")
    woken_by = {request.request_id for _, request in world.control.wakes}
    assert headers["x-request-id"] not in woken_by, "before retry_at nothing is woken"


async def test_failed_endpoint_is_tried_again_after_retry_at(world: World) -> None:
    runner = await world.runner()
    world.endpoint(state="failed", reason="no memory", retry_at=time.time() - 1)
    await world.known()

    def on_wake(endpoint_id: str) -> None:
        world.control.change(endpoint_id, state="live", reason=None, retry_at=None, replicas=(runner.route,))

    world.control.on_wake = on_wake
    status, headers, _ = await fetch(world)
    assert (status, headers["x-ebb-cold-start"]) == (200, "1")


async def test_second_failure_fails_the_second_attempt(world: World) -> None:
    world.endpoint(state="failed", reason="no memory", retry_at=time.time() - 1)
    await world.known()

    def on_wake(endpoint_id: str) -> None:
        world.control.change(endpoint_id, state="waking", reason=None, retry_at=None)
        later = time.time() + 60
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, lambda: world.control.change(endpoint_id, state="failed", reason="bad", retry_at=later))

    world.control.on_wake = on_wake
    status, _, body = await fetch(world)
    assert (status, body["error"]["code"]) == (503, "model_failed")
    assert "bad" in body["error"]["message"]


@pytest.mark.parametrize("header", ["x-ebb-hold-timeout", "X-Scale-Up-Timeout"])
async def test_deadline(world: World, header: str) -> None:
    world.endpoint(eta_s=7.0)
    await world.known()
    started = time.monotonic()
    status, headers, body = await fetch(world, headers={header: "0.2"})
    assert 0.15 < time.monotonic() - started < 3
    assert (status, body["error"]["code"]) == (503, "model_loading")
    assert headers["retry-after"] == "7"
    assert headers["x-ebb-cold-start"] == "1"


async def test_no_hold_fails_at_once_but_wakes(world: World) -> None:
    world.endpoint()
    await world.known()
    status, _, body = await fetch(world, headers={"x-ebb-hold-timeout": "0"})
    assert (status, body["error"]["code"]) == (503, "model_loading")
    await eventually(lambda: len(world.control.wakes) == 1)


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "1e3", "", "1_0", "9" * 50])
async def test_garbage_hold_timeout(world: World, value: str) -> None:
    world.endpoint()
    await world.known()
    status, _, body = await fetch(world, headers={"x-ebb-hold-timeout": value})
    assert (status, body["error"]["param"]) == (400, "x-ebb-hold-timeout")
    assert world.control.wakes == []


async def test_deleted_while_waiting(world: World) -> None:
    world.endpoint()
    await world.known()
    waiter = asyncio.create_task(fetch(world))
    await eventually(lambda: world.gateway.activation.waiting("id-chat")[0] == 1)
    world.control.remove("id-chat")
    status, _, body = await waiter
    assert (status, body["error"]["code"]) == (404, "endpoint_not_found")
    assert "'chat'" in body["error"]["message"]


async def test_client_gone_while_waiting(world: World) -> None:
    world.endpoint()
    await world.known()
    waiter = asyncio.create_task(fetch(world))
    await eventually(lambda: len(world.control.wakes) >= 1)
    waiter.cancel()
    await eventually(lambda: world.gateway.activation.waiting("id-chat") == (0, 0), within_s=1.0)
    await asyncio.sleep(0.05)  # a wake may have been on its way
    wakes = len(world.control.wakes)
    await asyncio.sleep(0.5)
    assert len(world.control.wakes) == wakes, "nobody waits, so nothing is woken"


async def test_wake_is_repeated_while_anyone_waits(world: World) -> None:
    world.endpoint()
    await world.known()
    waiter = asyncio.create_task(fetch(world, headers={"x-ebb-hold-timeout": "1"}))
    await eventually(lambda: len(world.control.wakes) >= 3)
    assert {request.waiting for _, request in world.control.wakes} == {1}
    assert (await waiter)[0] == 503


class TestComments:
    """A held stream: silent at first, then 200 and comments."""

    async def test_comments_then_the_answer(self, world: World) -> None:
        runner = await world.runner()
        world.endpoint()
        await world.known()
        wake_with(world, runner, after_s=0.8)
        started = time.monotonic()
        async with world.post(body=chat(stream=True)) as response:
            assert time.monotonic() - started > 0.25
            text = await response.text()
        assert (response.status, response.headers["x-ebb-cold-start"]) == (200, "1")
        assert text.startswith(": waking phase=loading eta=")
        assert text.count(": waking") >= 2
        assert text.count("data: ") == 5
        assert text.endswith("data: [DONE]\n\n")

    async def test_failure_after_the_comments_is_an_event(self, world: World) -> None:
        world.endpoint()
        await world.known()
        asyncio.get_running_loop().call_later(
            0.6, lambda: world.control.change("id-chat", state="failed", reason="no memory")
        )
        async with world.post(body=chat(stream=True)) as response:
            text = await response.text()
        assert response.status == 200
        assert '"code":"model_failed"' in text.split("data: ")[1]
        assert "[DONE]" not in text

    async def test_status_is_true_before_the_comments(self, world: World) -> None:
        world.endpoint()
        await world.known()
        async with world.post(body=chat(stream=True), headers={"x-ebb-hold-timeout": "0.1"}) as response:
            assert response.status == 503

    async def test_upstream_refusal_after_the_comments_is_an_event(self, world: World) -> None:
        runner = await world.runner()
        runner.behaviour.status = 400
        world.endpoint()
        await world.known()
        wake_with(world, runner, after_s=0.6)
        async with world.post(body=chat(stream=True)) as response:
            text = await response.text()
        assert '"code":"told_so"' in text
        assert "[DONE]" not in text


class TestFullLine:
    """The line is bounded in requests and in bytes."""

    @pytest.fixture
    def settings(self) -> GatewaySettings:
        limits = HoldLimits(default_hold_s=5, most_requests=3, most_bytes=20_000, wake_every_s=0.2)
        return replace(SETTINGS, hold=limits)

    @pytest.mark.parametrize(("length", "fit"), [(10, 3), (9_000, 2)])
    async def test_queue_full(self, world: World, length: int, fit: int) -> None:
        world.endpoint()
        await world.known()
        body = chat(user="u")
        body["messages"][0]["content"] = "x" * length
        waiters = [asyncio.create_task(fetch(world, body=body)) for _ in range(fit)]
        await eventually(lambda: world.gateway.activation.waiting("id-chat")[0] == fit)
        status, headers, answer = await fetch(world, body=body)
        assert (status, answer["error"]["code"]) == (503, "queue_full")
        assert int(headers["retry-after"]) > 0
        world.control.remove("id-chat")
        assert [status for status, _, _ in await asyncio.gather(*waiters)] == [404] * fit


async def test_client_gone_in_the_moment_of_release(world: World) -> None:
    runner = await world.runner(slots=1)
    world.endpoint()
    await world.known()
    waiters = [asyncio.create_task(fetch(world)) for _ in range(10)]
    await eventually(lambda: world.gateway.activation.waiting("id-chat")[0] == 10)
    world.control.change("id-chat", state="live", replicas=(runner.route,))
    await runner.until_running(3)
    for waiter in waiters[::2]:
        waiter.cancel()
    done = await asyncio.gather(*waiters, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) or one[0] == 200 for one in done)  # type: ignore[index]
    assert sum(not isinstance(one, asyncio.CancelledError) for one in done) >= 5


async def test_demand_is_reported(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.hang = "before_first_byte"
    await world.live(runner)
    world.endpoint("asleep")
    await world.known()
    running = asyncio.create_task(fetch(world))
    held = asyncio.create_task(fetch(world, path="/e/asleep/v1/chat/completions", body=chat(model=None)))

    def latest() -> dict[str, tuple[int, int]]:
        told = [one for report in world.control.demand for one in report.endpoints]
        return {one.endpoint_id: (one.running, one.waiting) for one in told}

    await eventually(lambda: latest() == {"id-chat": (1, 0), "id-asleep": (0, 1)}, within_s=3)
    assert all(one.idle_for_s == 0.0 for one in world.control.demand[-1].endpoints)
    running.cancel()
    held.cancel()
    await eventually(lambda: latest() == {"id-chat": (0, 0), "id-asleep": (0, 0)}, within_s=1)
    assert world.control.demand[0].is_whole and not world.control.demand[-1].is_whole
    assert all(one.idle_for_s is not None and 0 <= one.idle_for_s < 1 for one in world.control.demand[-1].endpoints)
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_gateway_without_any_state(settings: GatewaySettings) -> None:
    from data_plane.gateway.app import Gateway

    gateway = Gateway(replace(settings, control_url="http://127.0.0.1:9"))
    await gateway.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}") as client:
            for path, status in (("/healthz", 200), ("/readyz", 503), ("/v1/models", 503)):
                async with client.get(path) as response:
                    assert response.status == status
    finally:
        await gateway.stop()
