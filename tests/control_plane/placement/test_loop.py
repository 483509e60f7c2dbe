"""The placement loop on real rows: who makes room for whom, what is told of it, and that it can be asked again."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from control_plane.db.session import Database
from control_plane.endpoints.memory import MIB
from control_plane.settings import Settings
from control_plane.simulator.decisions import replay
from tests.control_plane.conftest import TestKeys
from tests.control_plane.dispatch.test_cycle import Fleet, control_plane, working
from tests.fakes.fleet import add_model

pytestmark = pytest.mark.timeout(40)
SPEC: dict[str, Any] = {"context": 512, "concurrency": 4, "idle_s": 600}


@pytest.fixture
async def fleet(settings: Settings, keys: TestKeys, database: Database, tenant_id: UUID) -> AsyncGenerator[Fleet]:
    """A node with room for one replica of the model and not for two."""
    async with database.transaction() as session:
        await add_model(session, tenant_id)
    async with control_plane(settings, keys) as fleet:
        fleet.agent.memory_bytes = 700 * MIB
        await fleet.agent.register()
        yield fleet


async def until(condition: Any, timeout_s: float = 15.0) -> Any:
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):  # noqa: ASYNC110 - seen by HTTP only
            await asyncio.sleep(0.05)
        return found


async def test_an_idle_one_makes_room_and_one_at_work_does_not(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.placement.eviction.UNSERVED_REST_S", 0.3)
    first, second = await fleet.deploy("first", **SPEC), await fleet.deploy("second", **SPEC)
    async with working(fleet.agent):
        await fleet.gateway.demand(first["id"], running=1)
        await fleet.gateway.wake(first["id"])
        await fleet.gateway.wait_route("live", "first")
        await fleet.gateway.demand(second["id"], waiting=1)
        await fleet.gateway.wake(second["id"])

        async def waits() -> Any:
            route = await fleet.gateway.route("second")
            return route if route.phase == "capacity" else None

        route = await until(waits)
        assert route.reason is not None and "free of 560 MiB" in route.reason
        told = await fleet.get("/endpoints/second/explain")
        assert told["needs_bytes"] > told["free_bytes"] and told["where"] == "cpu of node box"
        assert [(each["endpoint"], each["doing"]) for each in told["holders"]] == [("first", "at work")]
        assert any("held by 'first'" in line for line in told["sentences"])
        await fleet.gateway.demand(first["id"], idle_for_s=0.5)
        await fleet.gateway.wait_route("live", "second")
    decided = (await fleet.get("/decisions?whole=true"))["items"]
    kinds = [(each["subject"], each["kind"]) for each in decided]
    assert kinds.count(("first", "evict")) == 1 and ("first", "sleep") in kinds
    assert {("first", "wake"), ("first", "place"), ("second", "wake"), ("second", "place")} <= set(kinds)
    evicted = next(each for each in decided if each["kind"] == "evict")
    assert "'second' needs" in evicted["reason"] and evicted["outcome"]["how"] == "stop"
    again = [replay(each) for each in decided]
    assert all(each.same is not False for each in again), [each for each in again if each.same is False]
    assert sum(each.same is True for each in again) >= 3, "placed twice, evicted once"
    one = await fleet.get(f"/decisions/{evicted['id']}")
    assert one == evicted
    asleep = await fleet.get("/endpoints/first/explain")
    assert "make room" in asleep["sentences"][0] and asleep["state"] == "zero"


async def test_a_minimum_is_never_taken(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.placement.eviction.UNSERVED_REST_S", 0.1)
    monkeypatch.setattr("control_plane.placement.eviction.TURN_S", 0.1)
    monkeypatch.setattr("control_plane.placement.rounds.PATIENCE_S", 0.1)
    await fleet.deploy("kept", min=1, **SPEC)
    second = await fleet.deploy("second", **SPEC)
    async with working(fleet.agent):
        await fleet.gateway.wait_route("live", "kept")
        await fleet.gateway.demand(second["id"], waiting=1)
        await fleet.gateway.wake(second["id"])
        await asyncio.sleep(1.0)
        assert (await fleet.get("/endpoints/second"))["state"] == "waking"
        assert (await fleet.get("/endpoints/kept"))["ready"] == 1
        told = await fleet.get("/endpoints/second/explain")
        assert [each["doing"] for each in told["holders"]] == ["its minimum"]


async def test_what_a_replica_took_corrects_the_next_estimate(fleet: Fleet) -> None:
    await fleet.deploy("chat", **SPEC)
    wanted = await fleet.deploy("chat", **SPEC)
    await fleet.gateway.wake(wanted["id"])
    [replica] = await fleet.agent.desired(wait_s=5)
    await fleet.agent.make_ready(replica)
    await fleet.agent.say(replica, "ready", fixed_bytes=300 * MIB, peak_bytes=340 * MIB)
    [row] = await fleet.replicas("chat")
    before = row["promised_bytes"] - replica.spec.kv_cache_bytes
    second = await fleet.deploy("other", **SPEC)
    await fleet.agent.say(replica, "stopped")
    await fleet.client.patch("/api/v1/endpoints/chat", headers=fleet.admin, json={"max": 0})
    await fleet.gateway.wake(second["id"])

    async def placed() -> Any:
        return await fleet.replicas("other")

    [row] = await until(placed)
    assert before != 300 * MIB and row["promised_bytes"] == 300 * MIB + replica.spec.kv_cache_bytes


async def test_one_of_high_priority_is_parked_and_woken_where_it_is(fleet: Fleet, database: Database) -> None:
    chat = await fleet.deploy("chat", priority="high", **{**SPEC, "idle_s": 1})
    await fleet.gateway.wake(chat["id"])
    [replica] = await fleet.agent.desired(wait_s=5)
    await fleet.agent.make_ready(replica)
    await fleet.gateway.demand(chat["id"], idle_for_s=0.9)

    async def told(intent: str) -> Any:
        return [each for each in await fleet.agent.desired(wait_s=1) if each.intent == intent]

    await until(lambda: told("park"))
    await fleet.agent.say(replica, "parked")
    assert (await fleet.get("/endpoints/chat"))["state"] == "zero"
    await fleet.gateway.wake(chat["id"])
    [again] = await until(lambda: told("run"))
    assert again.id == replica.id, "the one that has its weights"
    await fleet.agent.say(replica, "ready")
    assert (await fleet.gateway.wait_route("live")).replicas[0].id == replica.id
    await fleet.gateway.demand(chat["id"], idle_for_s=0.9)
    await until(lambda: told("park"))
    await fleet.agent.say(replica, "parked")
    async with database.transaction() as session:
        await session.execute(text("update replicas set released_at = released_at - interval '1 day'"))
    await fleet.deploy("other", min=1, **SPEC)
    await until(lambda: told("stop"))
