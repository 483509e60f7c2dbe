"""Limits of keys: the buckets by themselves, and what a client of a limited key sees."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.gateway.limits import Bucket, Limiter, duration
from data_plane.gateway.meter import EVENT_BYTES, Meter
from data_plane.wire.errors import ApiError
from data_plane.wire.keys import CLASS_WIDTH, KeyLimits, KeyRecord, Priority
from data_plane.wire.openai import parse_chat, parse_completion

from .world import World, chat, eventually


def key(priority: Priority = "normal", **limits: int) -> KeyRecord:
    return KeyRecord("k", "t", "p", "s", ("infer",), None, priority, KeyLimits(**limits))


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 200)), max_size=60), st.integers(1, 600))
def test_a_bucket_never_gives_more_than_its_rate_and_one_bucketful(asks: list[tuple[float, float]], most: int) -> None:
    bucket, now, given_out = Bucket(most, 0.0), 0.0, 0.0
    for pause_s, amount in asks:
        now += pause_s
        wanted = min(amount, most)
        if bucket.wait_s(amount, now) == 0:
            bucket.take(wanted, now)
            given_out += wanted
        else:
            assert bucket.wait_s(amount, now + bucket.wait_s(amount, now)) < 1e-3, "then it is there, as was said"
        assert given_out <= most * (1 + now / 60) * 1.0001
        assert bucket.level(now) <= most


def test_what_was_overestimated_is_given_back_and_what_was_not_is_owed() -> None:
    limiter, record = Limiter(), key(tokens_per_minute=600)
    permit = limiter.admit(record, 500, 0.0)
    assert limiter.headers(record, 0.0)["x-ratelimit-remaining-tokens"] == "100"
    permit.end(20, 0.0)
    permit.end(20, 0.0)
    assert limiter.headers(record, 0.0)["x-ratelimit-remaining-tokens"] == "580"
    limiter.admit(record, 580, 0.0).end(1180, 0.0)
    with pytest.raises(ApiError) as caught:
        limiter.admit(record, 10, 0.0)
    assert caught.value.headers["retry-after"] == "61", "600 are owed, and 10 are wanted, at 10 a second"
    assert caught.value.headers["x-ratelimit-remaining-tokens"] == "0"


def test_a_request_larger_than_the_whole_limit_waits_for_a_full_bucket() -> None:
    limiter, record = Limiter(), key(tokens_per_minute=60)
    limiter.admit(record, 1_000_000, 0.0).end(60, 0.0)
    with pytest.raises(ApiError):
        limiter.admit(record, 1_000_000, 59.0)
    limiter.admit(record, 1_000_000, 60.0)


def test_requests_at_once() -> None:
    limiter, record = Limiter(), key(max_concurrency=2)
    permits = [limiter.admit(record, 1, 0.0) for _ in range(2)]
    with pytest.raises(ApiError) as caught:
        limiter.admit(record, 1, 0.0)
    assert (caught.value.status, caught.value.body.param) == (429, "max_concurrency")
    permits[0].end(1, 0.0)
    permits[0].end(1, 0.0)
    limiter.admit(record, 1, 0.0)
    assert limiter.running == 2
    limiter.check()


def test_several_gateways_each_allow_their_part() -> None:
    limiter, record = Limiter(), key(requests_per_minute=60, max_concurrency=3)
    limiter.update((record,), 3)
    for _ in range(20):
        limiter.admit(record, 1, 0.0).end(1, 0.0)
    with pytest.raises(ApiError, match="60 requests a minute"):
        limiter.admit(record, 1, 0.0)
    assert limiter.headers(record, 0.0)["x-ratelimit-limit-requests"] == "60"


def test_changed_limits_hold_from_the_next_request_and_gone_keys_are_forgotten() -> None:
    limiter = Limiter()
    limiter.admit(key(requests_per_minute=1), 1, 0.0).end(1, 0.0)
    more = key(requests_per_minute=3)
    for _ in range(2):
        limiter.admit(more, 1, 0.0).end(1, 0.0)
    with pytest.raises(ApiError):
        limiter.admit(more, 1, 0.0)
    limiter.update((), 1)
    assert limiter.headers(more, 0.0) == {}
    assert limiter.admit(key(), 10**9, 0.0).key is None, "without limits there is nothing to book"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s")])
def test_durations_are_written_as_clients_know_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.sampled_from(["high", "normal", "low"]), st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)))
def test_a_wish_only_lowers_within_the_class(priority: Priority, wish: int | None) -> None:
    base = key(priority).rank(None)
    assert base <= key(priority).rank(wish) < base + CLASS_WIDTH
    assert key("high").rank(2**31 - 1) < key("normal").rank(-5) <= key("normal").rank(7) < key("low").rank(None)


class TestMeter:
    """What an answer used."""

    def test_estimates(self) -> None:
        made = parse_chat(b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":50,"n":2}')
        assert Meter.of(made, 400, 8192).estimate == 200
        assert Meter.of(parse_chat(b'{"messages":[{"role":"user","content":"hi"}]}'), 4, 8192).estimate == 257
        many = parse_completion(b'{"prompt":["a","b"],"max_tokens":100000}')
        assert Meter.of(many, 0, 64).estimate == 128, "no more than the context holds"

    def test_the_comment_is_taken_out_wherever_it_is_cut(self) -> None:
        events = [b"data: {}\n\n", b'data: {"a": ": usage 9 9"}\n\n', b": usage 12 30\n\n", b"data: [DONE]\n\n"]
        told = b"".join(events[:2]) + events[3]
        for cut in range(len(events)):
            meter = Meter(5, 100)
            parts = [b"".join(events[:cut]), b"".join(events[cut:])]
            assert b"".join(meter.relay(part) for part in parts) == told
            assert meter.used == 42

    def test_without_a_word_its_bytes_tell(self) -> None:
        meter = Meter(5, 100)
        assert meter.used == 0
        meter.relay(b"data: " + b"x" * (3 * EVENT_BYTES - 8) + b"\n\n")
        assert meter.used == 8

    def test_whole_answers(self) -> None:
        meter = Meter(5, 100)
        meter.whole(b"{}")
        assert meter.used == 0
        meter.whole(b'{"choices": [], "usage": {"prompt_tokens": 3, "total_tokens": 7}}')
        assert meter.used == 7
        meter.whole(b"\xff")
        assert meter.used == 0


async def send(world: World, key: str, **fields: Any) -> tuple[int, dict[str, str], str]:
    body = chat(**fields)
    async with world.post(body=body, headers={"Authorization": f"Bearer {key}"}) as response:
        return response.status, {name.lower(): value for name, value in response.headers.items()}, await response.text()


async def test_a_client_is_told_where_it_stands_and_is_refused_beyond(world: World) -> None:
    await world.live(await world.runner())
    limited = world.control.add_key("infer", limits=KeyLimits(requests_per_minute=2, tokens_per_minute=10_000))
    await world.known()
    status, headers, text = await send(world, limited, stream=True, max_tokens=100)
    assert status == 200 and ": usage" not in text and text.endswith("data: [DONE]\n\n")
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert headers["x-ratelimit-limit-tokens"] == "10000"
    assert int(headers["x-ratelimit-remaining-tokens"]) < 9_900, "the most it may make is taken at first"
    status, headers, _ = await send(world, limited, max_tokens=100)
    assert status == 200
    assert 9_800 < int(headers["x-ratelimit-remaining-tokens"]) < 9_993, "the first was put right: it took 7"
    status, headers, text = await send(world, limited)
    assert (status, '"type":"rate_limit_error"' in text, '"param":"requests_per_minute"' in text) == (429, True, True)
    assert 1 <= int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-remaining-requests"] == "0" and headers["x-ratelimit-reset-requests"]
    async with world.post() as response:
        assert response.status == 200 and not any(name.lower().startswith("x-ratelimit") for name in response.headers)
    assert 'ebb_gateway_rejections_total{reason="requests_per_minute"} 1.0' in world.gateway.metrics.render().decode()


async def test_requests_at_once_count_while_they_are_answered(world: World) -> None:
    runner = await world.runner()
    runner.behaviour.delay_s = 0.2
    await world.live(runner)
    limited = world.control.add_key("infer", limits=KeyLimits(max_concurrency=2))
    await world.known()
    statuses = [status for status, _, _ in await asyncio.gather(*(send(world, limited) for _ in range(5)))]
    assert sorted(statuses) == [200, 200, 429, 429, 429]
    await eventually(lambda: world.gateway.limits.running == 0)
    assert (await send(world, limited))[0] == 200


async def test_a_request_beyond_its_limit_wakes_nothing(world: World) -> None:
    world.endpoint()
    limited = world.control.add_key("infer", limits=KeyLimits(requests_per_minute=1))
    world.endpoint("other")
    await world.known()
    headers = {"Authorization": f"Bearer {limited}", "x-ebb-hold-timeout": "0"}
    for name, status in (("chat", 503), ("other", 429)):
        async with world.post(f"/e/{name}/v1/chat/completions", chat(model=name), headers=headers) as response:
            assert response.status == status
    await eventually(lambda: len(world.control.wakes) == 1)
    assert {endpoint_id for endpoint_id, _ in world.control.wakes} == {"id-chat"}


async def test_the_class_of_the_key_goes_to_the_runner(world: World) -> None:
    runner = await world.runner()
    await world.live(runner)
    high = world.control.add_key("infer", priority="high")
    low = world.control.add_key("infer", priority="low")
    await world.known()
    for sender, wish, sent in ((high, -7, -CLASS_WIDTH), (low, 3, CLASS_WIDTH + 3), (world.key, -9, None)):
        assert (await send(world, sender, priority=wish))[0] == 200
        assert runner.seen[-1].body.get("priority") == sent
