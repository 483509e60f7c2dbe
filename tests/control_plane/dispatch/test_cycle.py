"""The fleet as a whole: real loops, real Postgres, an agent and a gateway that are only their HTTP calls."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
import uvicorn
from sqlalchemy import text

from control_plane.app import create_app
from control_plane.db.session import Database
from control_plane.placement import observe
from control_plane.settings import Settings
from data_plane.wire.fleet import DesiredReplica, StartFailure
from tests.control_plane.conftest import TestKeys
from tests.fakes.fleet import FakeAgent, FakeGateway, add_model

pytestmark = pytest.mark.timeout(40)


class Fleet:
    """A control plane with its loops, and its two neighbours."""

    def __init__(self, client: httpx.AsyncClient, keys: TestKeys) -> None:
        self.client = client
        self.admin = keys.headers(keys.admin)
        self.agent = FakeAgent(client, keys.node)
        self.gateway = FakeGateway(client, keys.node)

    async def deploy(self, name: str = "chat", **fields: Any) -> dict[str, Any]:
        body = {"name": name, "model": "tiny", "idle_s": 30, **fields}
        answer = await self.client.post("/api/v1/endpoints", headers=self.admin, json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self.client.get("/api/v1" + path, headers=self.admin)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def replicas(self, name: str = "chat") -> list[dict[str, Any]]:
        return (await self.get(f"/replicas?endpoint={name}"))["items"]


@asynccontextmanager
async def control_plane(settings: Settings, keys: TestKeys) -> AsyncGenerator[Fleet]:
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none"))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110 - uvicorn offers nothing to wait for
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield Fleet(client, keys)
    app.state.bells.hush()
    server.should_exit = True
    await serving


@pytest.fixture
async def fleet(settings: Settings, keys: TestKeys, database: Database, tenant_id: UUID) -> AsyncGenerator[Fleet]:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
    async with control_plane(settings, keys) as fleet:
        await fleet.agent.register()
        yield fleet


@asynccontextmanager
async def working(agent: FakeAgent) -> AsyncGenerator[None]:
    task = asyncio.create_task(agent.work())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_zero_waking_live_draining_zero(fleet: Fleet) -> None:
    endpoint = await fleet.deploy(idle_s=1)
    assert (endpoint["state"], endpoint["desired"], endpoint["ready"]) == ("zero", 0, 0)
    assert endpoint["url"] == "http://127.0.0.1:7071/e/chat/v1"
    async with working(fleet.agent):
        await fleet.gateway.demand(endpoint["id"], waiting=1)
        answer = await fleet.gateway.wake(endpoint["id"])
        assert answer.state == "waking"
        route = await fleet.gateway.wait_route("live")
        assert [replica.url for replica in route.replicas] == ["http://127.0.0.1:17999"]
        [replica] = await fleet.replicas()
        assert replica["status"] == "ready" and replica["pid"] == 4242
        assert {"decide", "place", "spawn", "import", "load", "warmup", "ready"} <= set(replica["spans"])
        await fleet.gateway.demand(endpoint["id"])
        route = await fleet.gateway.wait_route("zero")
        assert route.replicas == ()
    [replica] = await fleet.replicas()
    assert replica["status"] == "stopped" and replica["ended_at"]
    measured = (await fleet.client.get("/metrics", headers=fleet.admin)).text
    for name in (
        'ebb_start_phase_seconds_count{phase="load"}',
        "ebb_cold_starts_total",
        'ebb_wakes_total{source="gateway"}',
        "ebb_endpoints{",
        "ebb_reconcile",
    ):
        assert name in measured
    events = (await fleet.get("/events?subject=chat"))["items"]
    told = [event["type"] for event in events if event["kind"] == "endpoint"]
    assert [state for state in told if state in ("waking", "live", "draining", "zero")] == [
        "waking", "live", "draining", "zero",
    ]  # fmt: skip
    assert all(event["reason"] for event in events)
    assert [event["type"] for event in events if event["kind"] == "replica"] == [
        "placing", "starting", "loading", "ready", "draining", "draining", "stopped",
    ]  # fmt: skip


async def test_a_start_is_called_off_when_nobody_waits_any_more(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.autoscaler.policy.CALL_OFF_S", 0.3)
    endpoint = await fleet.deploy(idle_s=600)
    await fleet.gateway.demand(endpoint["id"], waiting=1)
    await fleet.gateway.wake(endpoint["id"])
    [wanted] = await fleet.agent.desired(wait_s=5)
    await fleet.agent.say(wanted, "loading")
    await fleet.gateway.demand(endpoint["id"])
    route = await fleet.gateway.wait_route("draining")
    assert route.replicas == ()
    events = (await fleet.get("/events?subject=chat"))["items"]
    reasons = [event["reason"] for event in events if event["type"] == "scaled"]
    assert reasons[-1] == "The start was called off: nobody waits any more."


async def test_a_start_that_a_client_was_told_to_come_back_for_goes_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.autoscaler.policy.CALL_OFF_S", 0.1)
    promised, by_hand = await fleet.deploy("promised"), await fleet.deploy("by-hand")
    await fleet.gateway.wake(promised["id"], again_s=20)
    answer = await fleet.client.post("/api/v1/endpoints/by-hand/wake", headers=fleet.admin)
    assert answer.status_code == 202
    for endpoint in (promised, by_hand):
        await fleet.gateway.demand(endpoint["id"])
    await asyncio.sleep(0.8)
    for name in ("promised", "by-hand"):
        assert (await fleet.get(f"/endpoints/{name}"))["desired"] == 1


async def test_how_long_a_start_takes_is_learned_from_all_of_the_same_artifact(
    fleet: Fleet, database: Database
) -> None:
    assert (await fleet.gateway.state()).gateways == 1
    for _ in range(3):
        endpoint = await fleet.deploy()
        await fleet.gateway.wake(endpoint["id"])
        [wanted] = await fleet.agent.desired(wait_s=5)
        await fleet.agent.make_ready(wanted)
        answer = await fleet.client.delete("/api/v1/endpoints/chat", headers=fleet.admin)
        assert answer.status_code == 204
        await fleet.agent.say(wanted, "stopped")
        await fleet.agent.desired()
    async with database.transaction() as session:
        await session.execute(text("update starts set total_s = 10 + 20 * random()"))
        await session.execute(
            text("update starts set total_s = 900 where created_at = (select max(created_at) from starts)")
        )
    told = (await fleet.get("/starts"))["items"]
    assert [(start["outcome"], start["tier"], start["node"]) for start in told] == [("ready", "cached", "box")] * 3
    assert {"decide", "place", "spawn", "load"} <= set(told[0]["spans"]) and told[0]["bytes"] > 0
    assert told[0]["bound_s"] == pytest.approx(told[0]["bytes"] / 1e9)
    fresh = await fleet.deploy("never-started")
    await fleet.gateway.demand(fresh["id"], waiting=1)
    await fleet.gateway.wake(fresh["id"])
    await fleet.agent.desired(wait_s=5)
    route = await fleet.gateway.route("never-started")
    assert route.eta_s is not None and 5 <= route.eta_s <= 30, "one slow start of three does not matter"
    other = FakeGateway(fleet.client, fleet.gateway.key, name="gateway-2")
    await other.demand(fresh["id"], waiting=1)
    assert (await fleet.gateway.state()).gateways == 2


async def test_twenty_wakes_at_once_are_one_replica(fleet: Fleet) -> None:
    endpoint = await fleet.deploy(max=4)
    await fleet.agent.desired()
    await asyncio.gather(*(fleet.gateway.wake(endpoint["id"], waiting=20) for _ in range(20)))
    [wanted] = await fleet.agent.desired(wait_s=5)
    await asyncio.gather(*(fleet.gateway.wake(endpoint["id"], waiting=20) for _ in range(20)))
    await asyncio.sleep(0.3)
    assert [replica["id"] for replica in await fleet.replicas()] == [wanted.id]
    assert wanted.spec.device == "cpu" and wanted.spec.max_model_len == 8192 and wanted.spec.kv_cache_bytes > 0


async def test_a_wake_reaches_the_agent_by_bells_not_ticks(fleet: Fleet) -> None:
    waits: list[float] = []
    for index in range(5):
        endpoint = await fleet.deploy(f"chat-{index}")
        await fleet.agent.desired()
        poll = asyncio.create_task(fleet.agent.desired(wait_s=10))
        await asyncio.sleep(0.1)
        began = time.perf_counter()
        await fleet.gateway.wake(endpoint["id"])
        await poll
        waits.append(time.perf_counter() - began)
    print("wake to long poll, ms:", [round(1000 * wait) for wait in sorted(waits)])
    assert max(waits) < 2.5, "by a tick of five seconds each of them would be so soon once in two times"


async def test_the_state_is_the_same_after_a_restart_and_the_replica_is_adopted(
    settings: Settings, keys: TestKeys, fleet: Fleet
) -> None:
    endpoint = await fleet.deploy()
    await fleet.gateway.wake(endpoint["id"])
    [wanted] = await fleet.agent.desired(wait_s=5)
    await fleet.agent.make_ready(wanted)
    before = await fleet.gateway.state()
    async with control_plane(settings, keys) as reborn:
        gateway = FakeGateway(reborn.client, keys.node)
        assert (await gateway.state()).version == before.version
        agent = fleet.agent
        agent.client = reborn.client
        assert (await agent.report()).status_code == 204, "no need to register again"
        await agent.desired()
        [still] = await agent.desired()
        assert (still.id, still.intent) == (wanted.id, "run")
        await agent.register()
        assert (await agent.report()).status_code == 204
        [replica] = await reborn.replicas()
        assert (replica["id"], replica["status"]) == (wanted.id, "ready")


async def test_a_fatal_start_fails_the_waiters_at_once_and_may_be_tried_after_a_while(fleet: Fleet) -> None:
    endpoint = await fleet.deploy()
    await fleet.gateway.wake(endpoint["id"])
    [wanted] = await fleet.agent.desired(wait_s=5)
    await fleet.agent.say(wanted, "failed", failure={"message": "The artifact is broken.", "fatal": True})
    route = await fleet.gateway.route()
    assert (route.state, route.reason) == ("failed", "The artifact is broken.")
    assert route.retry_at is not None
    assert (await fleet.gateway.wake(endpoint["id"])).state == "failed", "too early"
    assert await fleet.agent.desired(wait_s=0.3) == ()
    await asyncio.sleep(max(0.0, route.retry_at - time.time()) + 0.05)
    fleet.agent.replicas.clear()
    assert (await fleet.gateway.wake(endpoint["id"])).state == "waking"
    [probe] = await fleet.agent.desired(wait_s=5)
    assert probe.id != wanted.id
    await fleet.agent.make_ready(probe)
    assert (await fleet.gateway.route()).state == "live"


async def test_killed_while_starting_is_replaced_twice_and_then_given_up(fleet: Fleet) -> None:
    endpoint = await fleet.deploy()
    await fleet.gateway.wake(endpoint["id"])
    tried: set[str] = set()
    for _ in range(3):
        async with asyncio.timeout(10):
            while not (fresh := [r for r in await fleet.agent.desired(wait_s=1) if r.id not in tried]):
                pass
        tried.add(fresh[0].id)
        fleet.agent.replicas.clear()
        await fleet.agent.say(fresh[0], "failed", failure={"message": "Killed by signal 9.", "fatal": False})
    route = await fleet.gateway.route()
    assert (route.state, route.reason) == ("failed", "Killed by signal 9.")
    changed = await fleet.client.patch("/api/v1/endpoints/chat", headers=fleet.admin, json={"max": 2})
    assert changed.json()["state"] == "zero", "a change of the spec clears it"


async def test_a_ready_replica_that_dies_is_replaced_at_once(fleet: Fleet) -> None:
    endpoint = await fleet.deploy()
    await fleet.gateway.wake(endpoint["id"])
    [first] = await fleet.agent.desired(wait_s=5)
    await fleet.agent.make_ready(first)
    await fleet.agent.desired()
    await fleet.agent.say(first, "failed", failure={"message": "Killed by signal 9.", "fatal": False})
    async with asyncio.timeout(10):
        while not (second := [r for r in await fleet.agent.desired(wait_s=2) if r.id != first.id]):
            pass
    fleet.agent.replicas.clear()
    await fleet.agent.make_ready(second[0])
    route = await fleet.gateway.route()
    assert [replica.id for replica in route.replicas] == [second[0].id]


async def test_after_a_crash_loop_one_is_tried_alone_and_the_others_once_it_has_lived(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "PROVEN_S", 0.5)
    died = StartFailure("The runner, once ready, ended with exit code 1.", False)
    endpoint = await fleet.deploy(min=3, max=3)

    async def wanted(count: int, not_in: set[str]) -> list[DesiredReplica]:
        async with asyncio.timeout(10):
            while len(new := [r for r in await fleet.agent.desired(wait_s=1) if r.id not in not_in]) < count:
                pass
        return new

    wave = await wanted(3, set())
    for replica in wave:
        await fleet.agent.make_ready(replica)
    for id, seen in fleet.agent.replicas.items():
        fleet.agent.replicas[id] = msgspec.structs.replace(seen, phase="failed", url=None, failure=died)
    await fleet.agent.report()
    began = time.monotonic()
    assert (await fleet.gateway.wake(endpoint["id"])).state == "failed", "who asks now is told at once"
    tried = {replica.id for replica in wave}
    fleet.agent.replicas.clear()
    [probe] = await wanted(1, tried)
    assert time.monotonic() - began > 0.5, "after a second, and by itself: three are wanted"
    await asyncio.sleep(0.2)
    assert [r.id for r in await fleet.agent.desired()] == [probe.id], "one alone"
    await fleet.agent.make_ready(probe)
    await wanted(2, {probe.id, *tried})


async def test_min_keeps_one_and_rm_ends_it(fleet: Fleet) -> None:
    async with working(fleet.agent):
        endpoint = await fleet.deploy(min=1)
        assert endpoint["state"] == "waking"
        await fleet.gateway.wait_route("live")
        gone = await fleet.client.delete("/api/v1/endpoints/chat", headers=fleet.admin)
        assert gone.status_code == 204
        assert (await fleet.gateway.state()).endpoints == ()
        async with asyncio.timeout(10):
            while (await fleet.get("/nodes"))["items"][0]["replicas"]:  # noqa: ASYNC110 - seen by HTTP only
                await asyncio.sleep(0.05)
    assert (await fleet.client.get("/api/v1/endpoints/chat", headers=fleet.admin)).status_code == 404
    await fleet.agent.desired()
    assert fleet.agent.gone == (endpoint["id"],), "what nodes keep of it must go"
    again = await fleet.deploy()
    assert again["id"] != endpoint["id"] and again["state"] == "zero"


async def test_a_new_revision_takes_over_without_a_gap(fleet: Fleet) -> None:
    endpoint = await fleet.deploy()
    await fleet.gateway.wake(endpoint["id"])
    [old] = await fleet.agent.desired(wait_s=5)
    await fleet.agent.make_ready(old)
    same = await fleet.deploy()
    assert same["revision"] == 1, "nothing changed"
    revised = await fleet.deploy(concurrency=8)
    assert revised["revision"] == 2 and revised["id"] == endpoint["id"]
    async with asyncio.timeout(10):
        while len(wanted := await fleet.agent.desired(wait_s=1)) < 2:
            pass
    new = next(replica for replica in wanted if replica.id != old.id)
    assert (new.generation, new.spec.max_num_seqs) == (2, 8)
    assert [replica.id for replica in (await fleet.gateway.route()).replicas] == [old.id]
    await fleet.agent.make_ready(new)
    async with asyncio.timeout(10):
        while {r.id: r.intent for r in await fleet.agent.desired(wait_s=1)} != {old.id: "drain", new.id: "run"}:
            pass
    assert [replica.id for replica in (await fleet.gateway.route()).replicas] == [new.id]


async def test_load_adds_replicas(fleet: Fleet) -> None:
    endpoint = await fleet.deploy(max=3, target=4)
    async with working(fleet.agent):
        await fleet.gateway.wake(endpoint["id"])
        await fleet.gateway.wait_route("live")
        await fleet.gateway.demand(endpoint["id"], running=4, waiting=5)
        async with asyncio.timeout(10):
            while len((await fleet.gateway.route()).replicas) < 3:  # noqa: ASYNC110 - seen by HTTP only
                await asyncio.sleep(0.05)
        assert len(await fleet.replicas()) == 3


async def test_without_a_node_it_waits_and_says_so_and_starts_when_one_comes(
    settings: Settings, keys: TestKeys, database: Database, tenant_id: UUID
) -> None:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
    async with control_plane(settings, keys) as fleet:
        endpoint = await fleet.deploy()
        await fleet.gateway.wake(endpoint["id"])
        async with asyncio.timeout(5):
            while "No node" not in (await fleet.get("/endpoints/chat"))["reason"]:  # noqa: ASYNC110 - seen by HTTP only
                await asyncio.sleep(0.02)
        await fleet.agent.register()
        assert len(await fleet.agent.desired(wait_s=2)) == 1


async def test_what_fits_nowhere_fails_with_numbers(fleet: Fleet) -> None:
    endpoint = await fleet.deploy()
    fleet.agent.memory_bytes = 1 << 28
    await fleet.agent.register()
    await fleet.gateway.wake(endpoint["id"])
    route = await fleet.gateway.wait_route("failed")
    assert route.reason is not None and "205 MiB for replicas" in route.reason and "--context" in route.reason
