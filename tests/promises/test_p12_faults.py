"""Promise 12: whatever happens to a replica, an answer that has begun ends whole, or says that it does not.

Faults by their common names: F1 killed, F2 killed and the only one, F4 hangs, F14 cut off from the gateway, F39 killed
by a request. Each ends with the history of all requests: one outcome each (I1), what they say is what an undisturbed
one says (I2), and nothing is held afterwards (I3).
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.promises.faults import Fleet, Seen, until
from tests.promises.severed import Severable

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Say it."}], "stream": True, "max_tokens": 100}
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 11},
    {"temperature": 1.0, "seed": 12, "n": 2},
    {"temperature": 0, "stop": ["answer is 42. Hello there, wXX", "Hello there, wörld 😀! The answer is 42. Hel"]},
    {"temperature": 1.0, "seed": 13, "logprobs": True, "top_logprobs": 2},
    {"temperature": 0, "stream": False},
    {"temperature": 1.0, "seed": 14, "stream": False, "n": 2, "logprobs": True},
]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path)
    await made.start()
    yield made
    await made.close()


async def undisturbed(fleet: Fleet) -> list[dict[int, dict[str, Any]]]:
    """What each kind says when nothing happens."""
    seen = await asyncio.gather(*(fleet.ask(ASKED | kind) for kind in KINDS))
    assert [one.outcome for one in seen] == ["complete"] * len(KINDS)
    return [one.said() for one in seen]


def begin_many(fleet: Fleet, rounds: int) -> "list[asyncio.Task[Seen]]":
    return [fleet.begin(fleet.ask(ASKED | kind)) for _ in range(rounds) for kind in KINDS]


async def all_whole(tasks: "list[asyncio.Task[Seen]]", wanted: list[dict[int, dict[str, Any]]]) -> list[Seen]:
    seen = await asyncio.gather(*tasks)
    failed = [(at, one.outcome, one.raw[-300:]) for at, one in enumerate(seen) if one.outcome != "complete"]
    assert not failed
    for at, one in enumerate(seen):
        assert one.said() == wanted[at % len(wanted)], KINDS[at % len(KINDS)]
    return seen


def longest_pause_s(seen: list[Seen]) -> float:
    """Between two pieces of a stream."""
    return max(later - at for one in seen for at, later in pairwise([one.began, *one.at]))


async def test_f1_a_killed_runner_is_not_noticed(fleet: Fleet) -> None:
    one, other = await asyncio.gather(fleet.runner("one"), fleet.runner("other"))
    await fleet.live(one, other)
    wanted = await undisturbed(fleet)
    tasks = begin_many(fleet, 8)
    await fleet.running(len(tasks), on=2)
    await asyncio.sleep(0.3)
    lost = fleet.gateway.in_flight.of_replica("one")
    one.send(signal.SIGKILL)
    killed = asyncio.get_running_loop().time()
    await until(lambda: [left.id for left in fleet.gateway.table.usable("id", killed)] == ["other"], within_s=1)
    ejected = asyncio.get_running_loop().time()
    seen = await all_whole(tasks, wanted)
    resumed = await fleet.metric("ebb_gateway_streams_resumed_total")
    retried = await fleet.metric("ebb_gateway_upstream_retries_total")
    assert resumed and retried and resumed + retried <= lost, (lost, resumed, retried)
    print(
        f"F1: {lost} of {len(tasks)} lost their replica, {resumed:.0f} streams went on, {retried:.0f} retried; "
        f"ejected after {ejected - killed:.3f} s, longest pause {longest_pause_s(seen):.2f} s"
    )
    third = await fleet.runner("third")
    await fleet.live(third, other)
    await all_whole(begin_many(fleet, 1), wanted)
    await fleet.at_rest()


async def test_f2_the_only_runner_is_killed_and_its_successor_goes_on(fleet: Fleet) -> None:
    one = await fleet.runner("one")
    await fleet.live(one)
    wanted = await undisturbed(fleet)
    tasks = begin_many(fleet, 1)
    await fleet.running(len(tasks))
    await asyncio.sleep(0.2)
    one.send(signal.SIGKILL)
    await one.process.wait()
    tasks += begin_many(fleet, 1)
    await until(lambda: len(fleet.control.wakes) >= 1)
    await fleet.live(await fleet.runner("next"))
    seen = await all_whole(tasks, wanted)
    print(f"F2: longest pause of {len(seen)} requests {longest_pause_s(seen):.2f} s")
    assert any(b"\n: wa" in one.raw for one in seen), "a stream that has to wait is kept alive by comments"
    await fleet.at_rest()


async def test_f4_a_hanging_runner_is_given_up_and_comes_back(fleet: Fleet) -> None:
    one, other = await asyncio.gather(fleet.runner("one"), fleet.runner("other"))
    await fleet.live(one, other)
    wanted = await undisturbed(fleet)
    tasks = begin_many(fleet, 2)
    await fleet.running(len(tasks), on=2)
    await asyncio.sleep(0.2)
    one.send(signal.SIGSTOP)
    try:
        seen = await all_whole(tasks, wanted)
        print(f"F4: longest pause of {len(tasks)} requests {longest_pause_s(seen):.2f} s")
        assert max(max(one.at) for one in seen) - min(one.began for one in seen) < 10
        assert [left.id for left in fleet.gateway.table.usable("id", 0)] == ["other"], "no new requests go there"
        await all_whole(begin_many(fleet, 1), wanted)
    finally:
        one.send(signal.SIGCONT)
    await until(lambda: len(fleet.gateway.table.usable("id", 0)) == 2, within_s=10)
    await fleet.at_rest()


async def test_f14_a_severed_runner_costs_no_more_than_the_connect_timeout(fleet: Fleet) -> None:
    one, other = await asyncio.gather(fleet.runner("one"), fleet.runner("other"))
    async with Severable(one.route.url) as link:
        await fleet.live(link.route(one.route), other)
        wanted = await undisturbed(fleet)
        tasks = begin_many(fleet, 2)
        await fleet.running(len(tasks), on=2)
        await asyncio.sleep(0.2)
        await link.sever()
        old, new = await asyncio.gather(all_whole(tasks, wanted), all_whole(begin_many(fleet, 2), wanted))
        print(
            f"F14: longest pause {longest_pause_s(old):.2f} s of running requests, {longest_pause_s(new):.2f} s of new"
        )
        fresh = await all_whole(begin_many(fleet, 2), wanted)
        assert max(seen.at[0] - seen.began for seen in fresh) < 2, "nobody waits on it once it is known"
        await link.heal()
        await until(lambda: len(fleet.gateway.table.usable("id", 0)) == 2, within_s=10)
    await fleet.at_rest()


@pytest.mark.parametrize("at_token", [0, 3])
async def test_f39_a_request_that_kills_two_runners_gets_no_third(fleet: Fleet, at_token: int) -> None:
    """Before its first byte it is refused, within its stream it ends in an error; others on these runners go on."""
    runners = await asyncio.gather(*(fleet.runner(f"r{at}") for at in range(3)))
    await fleet.live(*runners)
    wanted = await undisturbed(fleet)
    tasks = begin_many(fleet, 3)
    await fleet.running(len(tasks), on=3)
    await asyncio.sleep(0.4)
    poison = ASKED | {"temperature": 0, "logit_bias": {"99": at_token}}
    seen = await fleet.ask(poison)
    assert (seen.outcome, seen.error_code) == ("error_event" if at_token else "http_error", "request_poisonous")
    await asyncio.sleep(0.1)
    assert sum(one.process.returncode is not None for one in runners) == 2
    again = await fleet.ask(poison)
    assert (again.status, again.error_code, again.headers["x-should-retry"]) == (500, "request_poisonous", "false")
    whole = await all_whole(tasks, wanted)
    print(f"F39: 2 of 3 runners lost, {len(tasks)} others whole, longest pause {longest_pause_s(whole):.2f} s")
    await all_whole(begin_many(fleet, 1), wanted)
    assert sum(one.process.returncode is not None for one in runners) == 2
    await fleet.at_rest()


async def test_draining_moves_what_does_not_end_in_time(fleet: Fleet) -> None:
    one, other = await asyncio.gather(fleet.runner("one"), fleet.runner("other"))
    await fleet.live(one, other)
    wanted = await undisturbed(fleet)
    tasks = begin_many(fleet, 2)
    await fleet.running(len(tasks), on=2)
    one.send(signal.SIGTERM)
    tasks += begin_many(fleet, 1)
    await all_whole(tasks, wanted)
    async with asyncio.timeout(5):
        assert await one.process.wait() == 0
    assert await fleet.metric("ebb_gateway_streams_resumed_total") > 0
    await fleet.at_rest()
