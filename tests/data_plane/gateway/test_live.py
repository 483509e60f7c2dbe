"""Requests to endpoints that are awake: answers, streams, headers both ways, choosing, and the official client."""

import asyncio

import openai
import pytest

from .world import World, chat, eventually


async def test_whole_answer(world: World) -> None:
    runner = await world.runner()
    await world.live(runner)
    async with world.post(body=chat(temperature=0.5)) as response:
        answer = await response.json()
    assert response.status == 200
    assert answer["choices"][0]["message"]["content"] == "tok tok tok tok "
    assert response.headers["x-ebb-cold-start"] == "0"
    assert "x-ebb-wake-ms" not in response.headers
    for name in set(response.headers):
        assert len(response.headers.getall(name)) == 1, f"{name} is sent twice"
    assert runner.seen[0].body["temperature"] == 0.5
    assert world.control.wakes == []


async def test_stream_is_relayed_whole(world: World) -> None:
    await world.live(await world.runner())
    async with world.post(body=chat(stream=True)) as response:
        text = await response.text()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-ebb-cold-start"] == "0"
    assert text.count("data: ") == 5
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/e/chat/v1/chat/completions", "chat"),
        ("/e/chat/v1/chat/completions", "smollm2"),
        ("/e/chat/v1/chat/completions", None),
        ("/v1/chat/completions", "chat"),
    ],
)
async def test_endpoint_by_url_or_model(world: World, path: str, model: str | None) -> None:
    runner = await world.runner()
    await world.live(runner)
    async with world.post(path, chat(model=model)) as response:
        assert response.status == 200, await response.text()
    assert runner.seen[0].body["model"] == "chat"


@pytest.mark.parametrize(
    ("path", "model", "status", "param"),
    [
        ("/e/chat/v1/chat/completions", "other", 404, "model"),
        ("/v1/chat/completions", "other", 404, "model"),
        ("/v1/chat/completions", None, 400, "model"),
        ("/e/other/v1/chat/completions", "chat", 404, None),
        ("/e/..%2Fchat/v1/chat/completions", "chat", 404, None),
    ],
)
async def test_unknown_endpoint_or_model(world: World, path: str, model: str | None, status: int, param: str) -> None:
    await world.live(await world.runner())
    async with world.post(path, chat(model=model)) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (status, param)
    assert error["message"].endswith((".", "'."))


async def test_headers_are_allowed_not_forwarded(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.response_headers = {"x-internal-node": "10.0.0.1", "Server-Timing": "a", "Set-Cookie": "a=b"}
    await world.live(runner)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {
        "x-ebb-tenant": "another",
        "Cookie": "a=b",
        "X-Forwarded-For": "1.1.1.1",
        "X-Internal-Role": "admin",
        "x-request-id": "mine:1",
    }
    async with world.post(headers={**sent, "traceparent": trace}) as response:
        await response.read()
    upstream = {name.lower(): value for name, value in runner.seen[0].headers.items()}
    assert upstream["authorization"] == "Bearer launch-token"
    assert (upstream["x-request-id"], upstream["traceparent"]) == ("mine:1", trace)
    assert upstream["x-ebb-tenant"] == "default", "the key's, whatever the client says"
    assert set(upstream) <= {
        "host", "accept", "content-type", "content-length", "authorization", "x-request-id", "traceparent",
        "x-ebb-tenant", "x-ebb-resumable", "x-ebb-usage",
    }  # fmt: skip
    assert world.key not in str(upstream)
    assert response.headers["x-request-id"] == "mine:1"
    assert not {"x-internal-node", "server-timing", "set-cookie"} & {name.lower() for name in response.headers}


async def test_bad_request_id_and_trace_are_replaced(world: World) -> None:
    runner = await world.runner()
    await world.live(runner)
    async with world.post(headers={"x-request-id": "no spaces allowed", "traceparent": "junk"}) as response:
        await response.read()
    given = response.headers["x-request-id"]
    assert len(given) == 32
    assert runner.seen[0].headers["x-request-id"] == given
    assert "traceparent" not in runner.seen[0].headers


async def test_load_is_spread_by_slots(world: World) -> None:
    small, large = await world.runner("small", slots=2), await world.runner("large", slots=6)
    for runner in (small, large):
        runner.behaviour.delay_s = 0.3
    await world.live(small, large)

    async def one() -> None:
        async with world.post() as response:
            assert response.status == 200

    await asyncio.gather(*(one() for _ in range(8)))
    assert (len(small.seen), len(large.seen)) == (2, 6)


async def test_upstream_refusal_passes(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.status = 400
    await world.live(runner)
    for stream in (False, True):
        async with world.post(body=chat(stream=stream)) as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] == "told_so"
    assert len(runner.seen) == 2


async def test_models_health_and_tokenizer(world: World) -> None:
    runner = await world.runner()
    await world.live(runner)
    world.endpoint("asleep")
    world.endpoint("theirs", tenant="other")
    await world.known()
    async with world.get("/v1/models") as response:
        listed = (await response.json())["data"]
    assert [(model["id"], model["state"], model["max_model_len"]) for model in listed] == [
        ("asleep", "zero", 8192),
        ("chat", "live", 8192),
    ]
    async with world.get("/e/asleep/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["asleep"]
    async with world.get("/v1/models/chat") as response:
        assert (await response.json())["object"] == "model"
    async with world.get("/v1/models/theirs") as response:
        assert response.status == 404
    async with world.get("/e/asleep/health") as response:
        assert (response.status, (await response.json())["state"]) == (200, "zero")
    async with world.post("/e/chat/tokenize", {"prompt": "hi"}) as response:
        assert (await response.json())["path"] == "/tokenize"
    async with world.post("/detokenize", {"tokens": [1], "model": "chat"}) as response:
        assert (await response.json())["path"] == "/detokenize"
    async with world.get("/tokenizer_info?model=chat") as response:
        assert response.status == 200
    for path, body in (("/e/asleep/tokenize", {"prompt": "hi"}), ("/e/asleep/detokenize", {"tokens": [1]})):
        async with world.post(path, body) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "endpoint_asleep")
    async with world.get("/e/asleep/tokenizer_info") as response:
        assert response.status == 503
    assert world.control.wakes == []
    assert all(one.running == one.waiting == 0 for report in world.control.demand for one in report.endpoints)


async def test_client_gone_frees_the_runner(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.event_every_s = 0.05
    runner.behaviour.events = 10_000
    await world.live(runner)
    response = await world.post(body=chat(stream=True))
    await response.content.readany()
    assert runner.running == 1
    response.close()
    await eventually(lambda: runner.aborted == 1, within_s=1.0)
    runner.behaviour.hang = "before_first_byte"
    waiting = asyncio.create_task(world.post(body=chat()).__aenter__())
    await runner.until_running(1)
    waiting.cancel()
    await eventually(lambda: runner.aborted == 2, within_s=1.0)


async def test_slow_reader_is_bounded(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.events = 3000
    runner.behaviour.text = "x" * 10_000
    await world.live(runner)
    response = await world.post(body=chat(stream=True))
    await asyncio.sleep(0.5)
    assert runner.running == 1, "30 MB were taken in for a client that reads nothing"
    async with world.post(body=chat()) as other:
        assert other.status == 200
    total = 0
    async for chunk in response.content.iter_any():
        total += len(chunk)
    assert total > 30_000_000


async def test_official_client(world: World) -> None:
    await world.live(await world.runner())
    async with openai.AsyncOpenAI(base_url=world.url + "/e/chat/v1", api_key=world.key) as client:
        answer = await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "tok tok tok tok "
        assert answer._request_id  # pyright: ignore[reportPrivateUsage] - it is what the client's users read
        stream = await client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "tok tok tok tok "
        text = await client.completions.create(model="chat", prompt=[1, 2, 3], max_tokens=4)
        assert text.choices[0].text == "tok tok tok tok "
        assert [model.id async for model in client.models.list()] == ["chat"]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("none/such")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="chat", messages=[], temperature=9)
        assert caught.value.param
