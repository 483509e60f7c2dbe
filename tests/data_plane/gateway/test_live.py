"""Requests to endpoints that are awake: answers, streams, headers both ways, and the official client."""

from .world import World, chat


async def test_whole_answer(world: World) -> None:
    runner = await world.runner()
    await world.live(runner)
    async with world.post(body=chat(temperature=0.5)) as response:
        answer = await response.json()
    assert response.status == 200
    assert answer["choices"][0]["message"]["content"] == "tok tok tok tok "
    assert response.headers["x-ebb-cold-start"] == "0"
    assert "x-ebb-wake-ms" not in response.headers
    assert runner.seen[0].body["temperature"] == 0.5
    assert world.control.wakes == []


async def test_stream_is_relayed_whole(world: World) -> None:
    await world.live(await world.runner())
    async with world.post(body=chat(stream=True)) as response:
        text = await response.text()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert text.count("data: ") == 5
    assert text.endswith("data: [DONE]\n\n")
