"""What the gateway knows of replicas: followed through restarts and lost answers, used to choose, told to people."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from aiohttp import web

from data_plane.gateway import followers
from data_plane.gateway.knowledge import Asked, Knowledge
from data_plane.gateway.settings import GatewaySettings
from data_plane.router.choose import Candidate
from data_plane.router.lease import InFlight
from data_plane.wire.openai import parse_chat
from data_plane.wire.prefix_chain import Chain, chain_of
from data_plane.wire.prefixes import PrefixReport, encode_report, pack_names
from data_plane.wire.routes import ReplicaRoute
from tests.fakes.runner import FakeRunner
from tests.fakes.served import TOKEN, Fake, fake_runner

from .world import SETTINGS, World, eventually

LONG = "the quick brown fox jumps over the lazy dog " * 40


class Reports:
    """Answers as a runner would whose cache holds what it is told to."""

    def __init__(self, epoch: str = "one") -> None:
        self.epoch = epoch
        self.seq = 1
        self.held = set[int]()
        self.asked: list[tuple[str, int]] = []
        self.lose = 0
        self.garbage = False
        self.load: dict[str, Any] = {}
        self._before: dict[int, set[int]] = {1: set()}

    def change(self, *held: int) -> None:
        self.seq += 1
        self.held = set(held)
        self._before[self.seq] = set(held)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        epoch, since = request.query["epoch"], int(request.query["since"])
        self.asked.append((epoch, since))
        before = self._before.get(since) if epoch == self.epoch else None
        for _ in range(40):
            if before is None or self.seq > since:
                break
            await asyncio.sleep(0.005)
        if self.lose:
            self.lose -= 1
            assert request.transport is not None
            request.transport.abort()
        stored, evicted = self.held - (before or set()), (before or set()) - self.held
        packed = (pack_names(sorted(stored)), pack_names(sorted(evicted)))
        report = PrefixReport(self.epoch, self.seq, before is None, *packed, **self.load)
        return web.Response(body=b"{}" if self.garbage else encode_report(report))


def chain(body: dict[str, Any]) -> tuple[int, ...]:
    return chain_of(parse_chat(msgspec.json.encode(body)), "default").names


def long(text: str = LONG) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": text}]}


async def reporting(world: World, name: str, *held: int) -> tuple[FakeRunner, Reports]:
    runner = await world.runner(name)
    reports = Reports()
    reports.change(*held)
    runner.prefixes = reports
    return runner, reports


def known(world: World, replica_id: str) -> int:
    return world.gateway.knowledge.known_chunks("id-chat", replica_id)


async def test_reports_are_followed_through_lost_answers_and_a_restart(world: World) -> None:
    runner, reports = await reporting(world, "r1", 1, 2, 3)
    await world.live(runner)
    await eventually(lambda: known(world, "r1") == 3)
    reports.lose = 2
    reports.change(1, 2, 4, 5)
    await eventually(lambda: known(world, "r1") == 4)
    reports.change(1)
    await eventually(lambda: known(world, "r1") == 1)
    assert reports.asked[-1][0] == "one"
    again = Reports("two")
    again.change(7, 8)
    runner.prefixes = again
    await eventually(lambda: known(world, "r1") == 2 and again.asked[-1] == ("two", 2))
    again.garbage = True
    again.change(9)
    await asyncio.sleep(0.1)
    assert known(world, "r1") == 2, "what is no report changes nothing"
    again.garbage = False
    await eventually(lambda: known(world, "r1") == 1)


async def test_followers_come_and_go_with_the_routes(world: World) -> None:
    first, _ = await reporting(world, "r1", 1)
    second, _ = await reporting(world, "r2", 1, 2)
    await world.live(first, second)
    await eventually(lambda: (known(world, "r1"), known(world, "r2")) == (1, 2))
    await world.live(second)
    assert world.gateway.followers.followed == {"r2"}
    assert (known(world, "r1"), known(world, "r2")) == (0, 2)
    world.control.remove("id-chat")
    await world.known()
    assert world.gateway.followers.followed == set()


async def test_a_silent_replica_keeps_its_prefixes_and_loses_its_load(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "SILENT_S", 0.1)
    runner, reports = await reporting(world, "r1", 1, 2)
    reports.load = {"running": 3, "pending_tokens": 500}
    route = await world.live(runner)

    def candidate() -> Candidate:
        return world.gateway.knowledge.candidate(route.id, route.replicas[0])

    await eventually(lambda: candidate().running == 3)
    assert candidate().pending_tokens == 500
    runner.prefixes = None
    await eventually(lambda: candidate().running is None)
    assert candidate().pending_tokens == 0 and known(world, "r1") == 2
    runner.prefixes = reports
    await eventually(lambda: candidate().running == 3)


async def test_a_request_goes_where_its_beginning_is_and_everybody_is_told(world: World) -> None:
    body = long()
    first, _ = await reporting(world, "r1")
    second, _ = await reporting(world, "r2", *chain(body))
    await world.live(first, second)
    await eventually(lambda: known(world, "r2") == len(chain(body)))
    for stream in (False, True):
        async with world.post(body=body | {"stream": stream, "user": "ann"}) as response:
            assert response.status == 200
            await response.read()
            told = dict(part.split("=") for part in response.headers["x-ebb-route"].split("; "))
            assert told["replica"] == "r2" and int(told["matched"]) > 300, told
            reason = told["reason"]
    assert not first.seen and "user" not in second.seen[0].body
    async with world.get("/routes/recent") as response:
        assert response.status == 403
    reader = world.control.add_key("read")
    await world.known()
    async with world.get("/routes/recent?limit=1&endpoint=chat", reader) as response:
        (record,) = (await response.json())["items"]
    assert (record["replica"], record["reason"], record["status"]) == ("r2", reason, 200)
    assert reason in ("prefix", "least_work")
    assert record["matched_tokens"] <= record["prompt_tokens"] and record["ttft_s"] > 0 and record["at"] > 1e9
    for query, status in (("limit=0", 400), ("limit=x", 400), ("endpoint=other", 200)):
        async with world.get(f"/routes/recent?{query}", reader) as response:
            assert response.status == status
    async with world.get("/metrics", reader) as response:
        text = await response.text()
    assert f'ebb_gateway_routes_total{{endpoint="chat",reason="{reason}"}} 2.0' in text
    assert 'ebb_gateway_matched_tokens_total{endpoint="chat"}' in text


async def test_another_tenants_requests_are_not_told(world: World) -> None:
    runner, _ = await reporting(world, "r1")
    await world.live(runner)
    async with world.post() as response:
        assert response.status == 200
    stranger = world.control.add_key("read", tenant="other")
    await world.known()
    async with world.get("/routes/recent", stranger) as response:
        assert (await response.json()) == {"items": []}


async def test_what_was_just_sent_counts_as_held_there(world: World) -> None:
    first, _ = await reporting(world, "r1")
    second, _ = await reporting(world, "r2")
    await world.live(first, second)
    await eventually(lambda: world.gateway.followers.followed == {"r1", "r2"})
    for _ in range(4):
        async with world.post(body=long()) as response:
            await response.read()
    assert sorted((len(first.seen), len(second.seen))) == [0, 4]


@pytest.mark.parametrize(
    ("headers", "fields"),
    [({"x-session-id": "s"}, {}), ({"x-ebb-session": "s"}, {}), ({}, {"prompt_cache_key": "s"}), ({}, {"user": "s"})],
)
async def test_a_session_stays_where_it_is(world: World, headers: dict[str, str], fields: dict[str, str]) -> None:
    runners = [await world.runner(f"r{at}") for at in range(4)]
    await world.live(*runners)
    for at in range(4):
        body = {"model": "chat", "messages": [{"role": "user", "content": f"short {at}"}], **fields}
        async with world.post(body=body, headers=headers) as response:
            assert "reason=session" in response.headers["x-ebb-route"]
    assert sorted(len(runner.seen) for runner in runners) == [0, 0, 0, 4]


@pytest.mark.parametrize(("policy", "seen"), [("round-robin", [2, 2]), ("least-load", [0, 4])])
def test_other_policies_are_for_comparing(policy: Any, seen: list[int]) -> None:
    knowledge, book = Knowledge(policy), InFlight()
    replicas = [ReplicaRoute(f"r{at}", "", "", 8) for at in range(2)]
    asked = Asked(Chain((1, 2, 3), 1000))
    chosen: list[str] = []
    for _ in range(4):
        choice = knowledge.choose("e", replicas, asked, 0.0)
        assert choice is not None and choice.reason == policy.replace("-", "_")
        lease = book.borrow("e", replicas[int(choice.replica_id[1])], choice.reason)
        knowledge.sent(lease, asked, choice.matched_tokens, 0.0)
        chosen.append(choice.replica_id)
        lease.give_back()
    assert sorted(chosen.count(name) for name in ("r0", "r1")) == seen
    book.check()


def test_work_that_this_gateway_sent_counts_until_its_first_byte() -> None:
    knowledge, book = Knowledge(), InFlight()
    replica = ReplicaRoute("r", "", "", 1)
    lease = book.borrow("e", replica)
    knowledge.sent(lease, Asked(Chain((1, 2), 800)), 50, 0.0)
    candidate = knowledge.candidate("e", replica)
    assert (candidate.in_flight, candidate.pending_tokens, lease.prompt_tokens) == (1, 150, 200)
    assert knowledge.choose("e", [], Asked(), 0.0) is None
    lease.on_answer()
    assert candidate.pending_tokens == 0
    lease.give_back()
    lease.give_back()
    assert candidate.in_flight == 0


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> GatewaySettings:
    return replace(SETTINGS, **getattr(request, "param", {}))


@pytest.fixture
async def engines() -> AsyncIterator[list[Fake]]:
    """Two runners with real engines and caches, and no model."""
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(fake_runner(max_model_len=4096)) for _ in range(2)]
        for one in fakes:  # at the pace of no engine, to compute anew costs nothing and a cache is worth nothing
            one.executor.token_delay_s = 1e-4
        yield fakes


@pytest.mark.parametrize(
    ("settings", "hits"), [({}, True), ({"route_policy": "round-robin"}, False)], indirect=["settings"]
)
async def test_every_turn_of_a_dialogue_finds_the_one_before(world: World, engines: list[Fake], hits: bool) -> None:
    """Through the whole path: gateway, two runners over HTTP, their engines and prefix caches."""
    replicas = tuple(ReplicaRoute(f"r{at}", one.url, TOKEN, 8) for at, one in enumerate(engines))
    world.endpoint("chat", state="live", replicas=replicas)
    await world.known()
    await eventually(lambda: world.gateway.followers.followed == {"r0", "r1"})
    went: dict[int, list[str]] = {0: [], 1: [], 2: []}
    missed = 0
    for turn in range(3):
        for dialogue in went:
            messages: list[dict[str, str]] = []
            for at in range(turn + 1):
                messages += [{"role": "user", "content": f"{dialogue} {at} {LONG[:700]}"}]
                messages += [{"role": "assistant", "content": f"answer {at}"}] if at < turn else []
            async with world.post(body={"model": "chat", "messages": messages, "max_tokens": 2}) as response:
                usage = (await response.json())["usage"]
                went[dialogue].append(response.headers["x-ebb-route"].split(";")[0])
            if turn:
                missed += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] > 250
    assert all(len(set(where)) == 1 for where in went.values()) is hits
    assert (missed == 0) is hits
    if hits:
        held = sum(len(one.model.engine.journal.held) for one in engines)
        await eventually(lambda: known(world, "r0") + known(world, "r1") == held > 0)
