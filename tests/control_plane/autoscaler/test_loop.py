"""The loop on real rows: endpoints that sleep and wake by their idle times, and fleets that survive a restart."""

import time
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient
from sqlalchemy import func, select, update

from control_plane.autoscaler.habits import FRESH_S, Habits, together
from control_plane.autoscaler.keepalive import History
from control_plane.autoscaler.loop import AutoscalerLoop, _due  # pyright: ignore[reportPrivateUsage]
from control_plane.autoscaler.pauses import Fleet, decode, encode
from control_plane.catalog.service import ready_model
from control_plane.db import lease
from control_plane.db.loop import Leadership
from control_plane.db.session import Database
from control_plane.endpoints import demand, service
from control_plane.endpoints.schemas import NewEndpoint, Scale
from control_plane.endpoints.slo import Slo
from control_plane.endpoints.tables import (
    BearingTable,
    DemandTable,
    EndpointTable,
    GatewayTable,
    KeepaliveTable,
    ReplicaTable,
)
from control_plane.errors import Invalid
from control_plane.events.tables import EventTable
from data_plane.wire.routes import DemandReport, EndpointDemand, Latency, Totals
from tests.control_plane.conftest import TestKeys
from tests.fakes.fleet import FakeAgent, add_artifact, add_model

HOUR = 3600.0


class World:
    """One endpoint of a fleet, whose rows are moved through time instead of waiting."""

    def __init__(self, database: Database, tenant_id: UUID, leadership: Leadership) -> None:
        self.database, self.tenant_id, self.leadership = database, tenant_id, leadership
        self.id = UUID(int=0)

    async def deploy(self, **fields: Any) -> None:
        async with self.database.transaction() as session:
            held, _ = await service.deploy(session, self.tenant_id, NewEndpoint("chat", "tiny", **fields))
            self.id = held.endpoint.id

    async def set(self, **values: Any) -> None:
        async with self.database.transaction() as session:
            await session.execute(update(EndpointTable).where(EndpointTable.id == self.id).values(**values))

    async def say(self, running: int = 0, idle_for_s: float | None = 0.0, **facts: Any) -> None:
        told = EndpointDemand(str(self.id), running, 0, idle_for_s, **facts)
        async with self.database.transaction() as session:
            await demand.note(session, DemandReport("g", (told,)))

    async def remember(self, gap_s: float, times: int = 20, apart_s: float = 60.0) -> None:
        history, now = History(), time.time()
        for step in range(times, 0, -1):
            history.learn(gap_s, now - step * apart_s)
        async with self.database.transaction() as session:
            session.add(KeepaliveTable(endpoint_id=self.id, history=encode(history)))

    async def worked(self, concurrency: float = 2.0, prefill_per_s: float = 0.0) -> None:
        """The last report was the end of a minute and more of such work."""
        async with self.database.transaction() as session:
            row = (await session.execute(select(DemandTable))).scalar_one()
            [[at, busy, *_]] = row.samples
            row.samples = [[at - 80 + t, busy + concurrency * t, prefill_per_s * t, 0.0] for t in range(0, 81, 2)]

    async def pass_s(self, seconds: float) -> None:
        """Everything that was so many seconds ago is so much longer ago; gateways are still heard."""
        back = func.make_interval(0, 0, 0, 0, 0, 0, seconds)
        moments = ("wake_at", "evicted_at", "last_wake_at", "last_ready_at", "asked_at", "promised_until")
        async with self.database.transaction() as session:
            for table, names in (
                (EndpointTable, moments),
                (KeepaliveTable, ("began_at",)),
                (DemandTable, ("last_work_at",)),
            ):
                shifted = {name: getattr(table, name) - back for name in names}
                await session.execute(update(table).values(shifted))

    async def tick(self) -> EndpointTable:
        await AutoscalerLoop().tick(self.leadership)
        async with self.database.transaction() as session:
            row = await session.get(EndpointTable, self.id)
            assert row is not None
            return row

    async def keepalive(self) -> KeepaliveTable:
        async with self.database.transaction() as session:
            row = await session.get(KeepaliveTable, self.id)
            assert row is not None
            return row

    async def reasons(self) -> list[str]:
        async with self.database.transaction() as session:
            query = select(EventTable.reason).where(EventTable.type == "scaled").order_by(EventTable.id)
            return list((await session.execute(query)).scalars())


@pytest.fixture
async def world(database: Database, tenant_id: UUID) -> AsyncGenerator[World]:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
        epoch = await lease.acquire(session, "test", expiry_s=60)
    assert epoch is not None
    yield World(database, tenant_id, Leadership(database, epoch))


async def test_the_habits_of_all_are_read_together_and_seldom(world: World) -> None:
    now, fleet = time.time(), Fleet()
    async with world.database.transaction() as session:
        assert await fleet.habits(session, now) == Habits()
    await world.deploy()
    await world.remember(HOUR)
    known = decode((await world.keepalive()).history).starts
    async with world.database.transaction() as session:
        assert await fleet.habits(session, now + FRESH_S - 1.0) == Habits(), "it was read just before"
        read = await fleet.habits(session, now + FRESH_S)
        assert read == together([known], now + FRESH_S) and max(read.hours) > 1.5
        kept = {name: value for name, value in encode(History(starts=known)).items() if name not in ("days", "since")}
        await session.execute(update(KeepaliveTable).values(history=kept))
        assert (await Fleet().habits(session, now)).days == (1.0, 1.0), "rows once had no days"


async def test_it_learns_plans_sleeps_and_is_woken_ahead(world: World) -> None:
    await world.deploy()
    await world.remember(HOUR, times=48, apart_s=HOUR)  # at all hours, or at this one it would be a habit
    await world.set(desired=1, start_s=0.1)  # not worth an hour of its memory
    await world.say(running=1)
    assert (await world.tick()).desired == 1
    await world.say(idle_for_s=0.0)
    await world.tick()
    kept = await world.keepalive()
    assert kept.began_at is not None and kept.plan is not None and not kept.plan["is_fallback"]
    await world.pass_s(1800)
    row = await world.tick()
    assert row.desired == 0 and row.wake_at is not None
    [slept] = await world.reasons()
    assert slept.startswith("No work for") and "woken ahead of an arrival" in slept
    assert (await _visited(world)) == [], "nothing is read of it until it is due"
    await world.pass_s(1750)
    row = await world.tick()
    assert row.desired == 1 and row.wake_at is None and row.promised_until is not None
    assert (await world.reasons())[-1].startswith("A request is expected. ")
    await world.set(last_ready_at=func.clock_timestamp(), state="live")
    assert (await world.tick()).desired == 1, "it is expected still"
    await world.pass_s(600)
    assert (await world.tick()).desired == 0, "nobody came"


async def test_the_first_request_ends_an_idle_time_and_is_learned_once(world: World) -> None:
    await world.deploy()
    await world.set(desired=1, last_ready_at=func.clock_timestamp())
    await world.say(idle_for_s=0.0)
    await world.tick()
    fallback = (await world.keepalive()).plan
    assert fallback is not None and fallback["is_fallback"] and "constant 300 s" in fallback["reason"]
    await world.pass_s(100)
    for _ in range(3):
        await world.say(running=1)
        await world.tick()
    kept = await world.keepalive()
    assert kept.began_at is None and sum(kept.history["whole"]["weights"].values()) == 1.0
    await world.say(idle_for_s=0.0)
    await world.tick()
    planned = (await world.keepalive()).plan
    assert planned is not None and not planned["is_fallback"] and "1 idle times" in planned["reason"]


@pytest.mark.parametrize("why", ["evicted", "failed", "none"])
async def test_what_made_room_or_failed_is_not_woken_ahead(world: World, why: str) -> None:
    await world.deploy(max=0 if why == "none" else 1)
    await world.remember(HOUR)
    await world.set(desired=1, last_ready_at=func.clock_timestamp())
    await world.say(idle_for_s=0.0)
    await world.tick()
    if why == "evicted":
        await world.set(evicted_at=func.clock_timestamp() + timedelta(seconds=1), desired=0)
    if why == "failed":
        await world.set(retry_at=func.clock_timestamp() + timedelta(seconds=9000), desired=0)
    await world.set(wake_at=func.clock_timestamp() + timedelta(seconds=3500), desired=0)
    await world.pass_s(3550)
    row = await world.tick()
    assert (row.desired, row.wake_at) == (0, None)
    assert not any("expected" in reason for reason in await world.reasons())


async def test_a_number_stays_a_number_and_plans_nothing(world: World) -> None:
    await world.deploy(idle_s=30)
    await world.set(desired=1, last_ready_at=func.clock_timestamp())
    await world.say(idle_for_s=0.0)
    await world.tick()
    await world.pass_s(31)
    assert (await world.tick()).desired == 0
    assert (await world.reasons()) == ["No work for 30 s."]
    async with world.database.transaction() as session:
        assert await session.get(KeepaliveTable, world.id) is None
        await service.scale(session, world.tenant_id, "chat", Scale(idle_s="auto"))
    assert (await world.tick()).idle_auto


async def test_a_fleet_is_the_same_after_the_control_plane_was_away(world: World) -> None:
    await world.deploy(max=8, target=4, idle_s=30)
    await world.set(desired=4, last_ready_at=func.clock_timestamp() - timedelta(seconds=500))
    await world.say(running=14, totals=Totals(1e4, 0, 0))
    assert (await world.tick()).desired == 4
    async with world.database.transaction() as session:  # nobody was heard for an hour
        await session.execute(
            update(GatewayTable).values(heard_at=GatewayTable.heard_at - func.make_interval(0, 0, 0, 0, 1))
        )
    await world.pass_s(HOUR)
    assert (await world.tick()).desired == 4, "no data is no reason"
    await world.say(running=14, totals=Totals(2e4, 0, 0))
    assert (await world.tick()).desired == 4, "the work that was there before"


async def test_it_shrinks_partly_once_a_minute_is_known(world: World) -> None:
    await world.deploy(max=8, target=4, idle_s=600)
    await world.set(desired=4, asked_at=func.clock_timestamp() - timedelta(seconds=500))
    await world.say(running=3, totals=Totals(100.0, 0, 0))
    assert (await world.tick()).desired == 4
    await world.worked(concurrency=3.0)
    await world.say(running=3, totals=Totals(341.0, 0, 0))
    assert (await world.tick()).desired == 1
    assert "1 of 4 replicas would have held it" in (await world.reasons())[-1]


SPEED = {"prefill_tps": 4000.0, "decode_1_tps": 100.0, "decode_8_tps": 400.0, "score": 600.0}
SLO = Slo(ttft_p95_ms=500.0, itl_p95_ms=30.0)


async def fast_endpoint(world: World, **fields: Any) -> None:
    """One with a latency to hold, of an artifact that was measured."""
    async with world.database.transaction() as session:
        model = await ready_model(session, world.tenant_id, "tiny")
        await add_artifact(session, model, "int8", speed=SPEED, quality={"perplexity_ratio": 1.0})
    await world.deploy(max=4, quant="int8", idle_s=600, slo=SLO, **fields)


async def test_a_latency_that_no_device_was_measured_to_have_is_refused_in_numbers(world: World) -> None:
    await fast_endpoint(world)
    with pytest.raises(Invalid, match=r"itl_p95_ms is 3, and one token of one request alone takes 10\.0 ms: 100"):
        await world.deploy(slo=Slo(itl_p95_ms=3.0), quant="int8")
    await world.deploy(slo=Slo(itl_p95_ms=3.0), quant="bf16")
    async with world.database.transaction() as session:
        query = select(EventTable.reason).where(EventTable.type == "unmeasured")
        [told] = (await session.execute(query)).scalars()
    assert "Nobody measured the bf16 artifact of 'tiny'" in told


async def test_tokens_ask_for_more_and_what_is_borne_is_learned(
    world: World, client: AsyncTestClient[Litestar], keys: TestKeys
) -> None:
    agent = FakeAgent(client, keys.node)
    await agent.register()
    await fast_endpoint(world)
    long_ago = func.clock_timestamp() - timedelta(seconds=500)
    await world.set(desired=1, asked_at=long_ago, last_ready_at=long_ago)
    async with world.database.transaction() as session:
        session.add(ready_replica(world.id, UUID(agent.node_id)))
    await world.say(running=2, totals=Totals(100.0, 0, 0))
    await world.worked(prefill_per_s=2000.0)
    missed = Latency(answers=50, over_s=60.0, ttft_p95_ms=900.0, itl_p95_ms=12.0)
    await world.say(running=2, totals=Totals(262.0, 160_000.0, 0.0), latency=missed)
    await world.tick()
    async with world.database.transaction() as session:
        [known] = (await session.execute(select(BearingTable))).scalars()
        assert (known.slo, known.device, known.source) == ("ttft=500 itl=30", "cpu", "learned")
        assert known.prefill_per_s < 2000.0, "at that it missed its latency"
    row = await world.tick()
    assert row.desired == 2
    assert "where one bears" in (await world.reasons())[-1], "of this minute, or of the last, if it has just begun"


def ready_replica(endpoint_id: UUID, node_id: UUID) -> ReplicaTable:
    """A replica that serves."""
    facts: dict[str, Any] = {"status": "ready", "intent": "run", "reason": "", "device": "cpu", "ordinal": 0}
    sizes: dict[str, Any] = {"promised_bytes": 1, "memory_bytes": 1, "slots": 32, "max_model_len": 8192}
    spec = {"artifact": "sha256:" + "8" * 64, "kv_cache_bytes": 1 << 30}
    row = ReplicaTable(endpoint_id=endpoint_id, generation=1, node_id=node_id, spec=spec, spans={}, **facts, **sizes)
    row.url, row.token = "http://127.0.0.1:1", "t"
    return row


async def test_hundreds_that_sleep_are_not_looked_at(world: World) -> None:
    await world.deploy()
    async with world.database.transaction() as session:
        first = await session.get(EndpointTable, world.id)
        assert first is not None
        names = [column.name for column in EndpointTable.__table__.columns if column.name not in ("id", "name")]
        copied = {name: getattr(first, name) for name in names}
        soon = first.created_at + timedelta(seconds=9)
        session.add_all(
            EndpointTable(**{**copied, "name": f"chat-{at}", "wake_at": soon if at == 7 else None}) for at in range(200)
        )
        await session.flush()
        due, soon_s = await _due(session)
    assert due == [] and 0 < soon_s <= 9


async def _visited(world: World) -> list[UUID]:
    async with world.database.transaction() as session:
        return (await _due(session))[0]
