"""Replicas that are lost, refuse or hang, and a control plane that goes away: what the client sees of it."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import openai
import pytest

from data_plane.gateway.settings import GatewaySettings
from data_plane.router.runner_client import Timeouts
from data_plane.wire.routes import ReplicaRoute

from .world import SETTINGS, World, chat, eventually


async def read(world: World, stream: bool = False) -> tuple[int, str]:
    async with world.post(body=chat(stream=stream)) as response:
        return response.status, await response.text()


@pytest.mark.parametrize("stream", [False, True])
async def test_crash_before_first_byte_is_retried_elsewhere(world: World, stream: bool) -> None:
    bad, good = await world.runner("a-bad"), await world.runner("b-good")
    bad.behaviour.crash = "before_first_byte"
    await world.live(bad, good)
    for _ in range(3):
        status, text = await read(world, stream)
        assert status == 200
        assert text.count("tok ") == 4
    assert len(bad.seen) == 1, "a lost replica is left alone"
    assert len(good.seen) == 3


async def test_whole_answer_cut_in_the_middle_is_retried(world: World) -> None:
    """A Content-Length that is not reached is a loss, too."""
    good = await world.runner("b-good")

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"choices": [')
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    bad = ReplicaRoute("a-bad", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "t", 32)
    world.endpoint(state="live", replicas=(bad, good.route))
    await world.known()
    async with server:
        status, text = await read(world)
    assert (status, json.loads(text)["object"]) == (200, "chat.completion")


async def test_crash_after_first_byte_is_an_error_event(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.crash = "after_events"
    await world.live(runner)
    status, text = await read(world, stream=True)
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert status == 200
    assert len(events) == 5, "whole events only, then the error"
    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert "[DONE]" not in text
    async with openai.AsyncOpenAI(base_url=world.url + "/e/chat/v1", api_key=world.key) as client:
        with pytest.raises(openai.APIError, match="interrupted"):
            async for _ in await client.chat.completions.create(
                model="chat", messages=[{"role": "user", "content": "hi"}], stream=True
            ):
                pass


async def test_end_without_done_is_never_a_clean_end(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.end_without_done = True
    await world.live(runner)
    _, text = await read(world, stream=True)
    assert '"stream_interrupted"' in text
    assert "[DONE]" not in text


async def test_runners_own_error_event_is_passed_once(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.error_event = True
    await world.live(runner)
    _, text = await read(world, stream=True)
    assert text.count('"error"') == 1
    assert '"engine_failed"' in text
    assert "[DONE]" not in text


async def test_draining_replica_is_avoided(world: World) -> None:
    leaving, staying = await world.runner("a-leaving"), await world.runner("b-staying")
    leaving.behaviour.draining = True
    await world.live(leaving, staying)
    for stream in (False, True):
        assert (await read(world, stream))[0] == 200
    assert len(staying.seen) == 2


async def test_only_replica_draining_means_holding_again(world: World) -> None:
    leaving, coming = await world.runner("a-leaving"), await world.runner("b-coming")
    leaving.behaviour.draining = True
    await world.live(leaving)
    held = asyncio.create_task(read(world))
    await eventually(lambda: len(world.control.wakes) >= 1)
    world.control.change("id-chat", state="live", replicas=(coming.route,))
    assert (await held)[0] == 200
    assert len(coming.seen) == 1


async def test_killed_replica_is_replaced_and_the_request_answered(world: World) -> None:
    dead, new = await world.runner("a-dead"), await world.runner("b-new")
    await world.live(dead)
    assert (await read(world))[0] == 200
    await dead.stop()
    held = asyncio.create_task(read(world))
    await eventually(lambda: len(world.control.wakes) >= 1)
    world.control.change("id-chat", state="live", replicas=(new.route,))
    assert (await held)[0] == 200


async def test_at_most_three_replicas_are_lost(world: World) -> None:
    runners = [await world.runner(f"r{index}") for index in range(5)]
    for runner in runners:
        runner.behaviour.crash = "before_first_byte"
    await world.live(*runners)
    status, text = await read(world)
    assert (status, json.loads(text)["error"]["code"]) == (502, "upstream_failed")
    assert sum(len(runner.seen) for runner in runners) == 3


async def test_wrong_token_is_not_the_clients_401(world: World) -> None:
    stranger, good = await world.runner("a-stranger"), await world.runner("b-good")
    stranger.token = "another launch"
    world.endpoint(state="live", replicas=(replace_token(stranger.route), good.route))
    await world.known()
    assert (await read(world))[0] == 200
    assert len(good.seen) == 1


def replace_token(route: ReplicaRoute) -> ReplicaRoute:
    return ReplicaRoute(route.id, route.url, "stale", route.slots)


async def test_html_error_never_reaches_the_client(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.status = 500
    runner.behaviour.raw_error = b"<html>Traceback</html>"
    await world.live(runner)
    async with world.post(headers={"x-ebb-hold-timeout": "0.2"}) as response:
        assert response.status == 503
        assert "error" in await response.json()


class TestHang:
    """A runner that takes a request and falls silent."""

    @pytest.fixture
    def settings(self) -> GatewaySettings:
        return replace(SETTINGS, runner=Timeouts(connect_s=0.3, silence_s=0.3))

    @pytest.mark.parametrize("stream", [False, True])
    async def test_before_the_first_byte(self, world: World, stream: bool) -> None:
        stuck, good = await world.runner("a-stuck"), await world.runner("b-good")
        stuck.behaviour.hang = "before_first_byte"
        await world.live(stuck, good)
        assert (await read(world, stream))[0] == 200
        assert len(good.seen) == 1

    async def test_within_a_stream(self, world: World) -> None:
        stuck = await world.runner()
        stuck.behaviour.hang = "after_events"
        await world.live(stuck)
        _, text = await read(world, stream=True)
        assert '"stream_interrupted"' in text
        await eventually(lambda: stuck.running == 0, within_s=1)

    async def test_connect_timeout(self, world: World) -> None:
        """An address that answers nothing, as a machine without power: the next replica is asked in time."""
        good = await world.runner("b-good")
        full = ReplicaRoute("a-full", "http://10.255.255.1:9", "t", 32)
        world.endpoint(state="live", replicas=(full, good.route))
        await world.known()
        async with asyncio.timeout(3):
            assert (await read(world))[0] == 200


class TestControlPlaneAway:
    """Live endpoints serve on, sleeping ones wake when it is back, and nothing is forgotten."""

    async def test_live_endpoints_serve_on(self, world: World) -> None:
        runner = await world.runner()
        await world.live(runner)
        await world.control.stop()
        for stream in (False, True):
            assert (await read(world, stream))[0] == 200
        async with world.client.get(world.url + "/readyz") as response:
            assert response.status == 200
        world.control.change("id-chat", max_model_len=1)
        await world.control.start()
        await world.known()
        assert (await read(world))[0] == 200

    async def test_held_requests_wait_for_it(self, world: World) -> None:
        runner = await world.runner()
        world.endpoint()
        await world.known()
        await world.control.stop()

        def on_wake(endpoint_id: str) -> None:
            world.control.change(endpoint_id, state="live", replicas=(runner.route,))

        world.control.on_wake = on_wake
        held: asyncio.Task[Any] = asyncio.create_task(read(world))
        await asyncio.sleep(0.3)
        assert not held.done()
        await world.control.start()
        assert (await held)[0] == 200
