"""F21 and F22 between agents and the control plane: bells that are lost, reports that come doubled, late and in another
order than they were sent."""

import asyncio
import random
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import msgspec
import pytest
from sqlalchemy import text

from control_plane.autoscaler.loop import AutoscalerLoop
from control_plane.db import long_poll, metrics
from control_plane.db.bells import Bells
from control_plane.db.session import Database
from control_plane.placement.loop import PlacementLoop
from control_plane.settings import Settings
from data_plane.wire.fleet import DesiredReplica, NodeReport, ObservedReplica, ReplicaPhase
from tests.control_plane.conftest import TestKeys
from tests.control_plane.dispatch.test_cycle import Fleet, control_plane, working
from tests.fakes.fleet import add_model

pytestmark = pytest.mark.timeout(60)
TICK_S = 0.4


@pytest.fixture
async def fleet(settings: Settings, keys: TestKeys, database: Database, tenant_id: UUID) -> AsyncGenerator[Fleet]:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
    async with control_plane(settings, keys) as fleet:
        await fleet.agent.register()
        yield fleet


def reported(wanted: DesiredReplica, phase: ReplicaPhase, **facts: Any) -> ObservedReplica:
    return ObservedReplica(wanted.id, wanted.generation, phase, wanted=wanted, **facts)


async def send(fleet: Fleet, sequence: int, *replicas: ObservedReplica) -> int:
    """One report, whenever it arrives."""
    body = msgspec.json.encode(NodeReport(fleet.agent.epoch, 1 << 30, replicas, sequence))
    headers = {"authorization": f"Bearer {fleet.agent.key}", "content-type": "application/json"}
    path = f"/internal/v1/nodes/{fleet.agent.node_id}/report"
    return (await fleet.client.post(path, headers=headers, content=body)).status_code


async def test_f22_reports_that_were_overtaken_undo_nothing_and_are_counted(fleet: Fleet, database: Database) -> None:
    stale = metrics.STORE.get_sample_value("ebb_stale_refused_total", {"what": "report"}) or 0.0
    endpoint = await fleet.deploy()
    await fleet.gateway.wake(endpoint["id"])
    [first] = await fleet.agent.desired(wait_s=5)
    ready: dict[str, Any] = {"url": "http://127.0.0.1:17999", "token": "t" * 16, "slots": 4, "pid": 7}
    life = [
        (), (reported(first, "starting"),), (reported(first, "loading"),), (reported(first, "ready", **ready),),
    ]  # fmt: skip
    assert await send(fleet, len(life), *life[-1]) == 204
    # all of them again, three times, older ones too: the first names no replica at all, as if it were gone
    again = [(sequence, seen) for sequence, seen in enumerate(life, 1)] * 3
    random.Random(22).shuffle(again)
    assert set(await asyncio.gather(*(send(fleet, sequence, *seen) for sequence, seen in again))) == {204}
    [replica] = await fleet.replicas()
    assert (replica["id"], replica["status"], replica["ended_at"]) == (first.id, "ready", None)

    await fleet.deploy(concurrency=8)
    async with asyncio.timeout(10):
        while not (new := [one for one in await fleet.agent.desired(wait_s=1) if one.generation == 2]):
            pass
    both = (reported(first, "ready", **ready), reported(new[0], "ready", **ready | {"pid": 8}))
    assert await send(fleet, 10, *both) == 204
    async with asyncio.timeout(10):
        while {one.id: one.intent for one in await fleet.agent.desired(wait_s=1)}[first.id] != "drain":
            pass
    assert await send(fleet, 11, reported(first, "stopped"), both[1]) == 204
    # from before the new one was there, and long after the old one was stopped
    assert await send(fleet, 9, both[0]) == 204
    async with database.transaction() as session:
        query = text("select id::text, status from replicas where status not in ('stopped', 'failed')")
        alive = [tuple(row) for row in await session.execute(query)]
    assert alive == [(new[0].id, "ready")], "I4: one of the current generation"
    counted = (metrics.STORE.get_sample_value("ebb_stale_refused_total", {"what": "report"}) or 0.0) - stale
    assert counted == len(again) + 1
    print(f"F22: {counted:g} late or doubled reports, all without effect")


async def test_f21_with_three_of_ten_bells_lost_every_replica_gets_where_it_should(
    fleet: Fleet, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlacementLoop, "interval_s", TICK_S)
    monkeypatch.setattr(AutoscalerLoop, "interval_s", TICK_S)
    monkeypatch.setattr(long_poll, "LOOK_AGAIN_S", TICK_S)
    chance, heard = random.Random(21), Bells.rung
    lost = 0

    def rung(self: Bells, topic: str) -> None:
        nonlocal lost
        if chance.random() < 0.3:
            lost += 1
        else:
            heard(self, topic)

    monkeypatch.setattr(Bells, "rung", rung)
    names = [f"chat-{number}" for number in range(5)]
    async with working(fleet.agent):
        for name in names:
            endpoint = await fleet.deploy(name)
            await fleet.gateway.wake(endpoint["id"])
        for name in names:
            await fleet.gateway.wait_route("live", name)
        for name in names:
            assert (await fleet.client.delete(f"/api/v1/endpoints/{name}", headers=fleet.admin)).status_code == 204
        async with asyncio.timeout(20):
            while (await fleet.get("/nodes"))["items"][0]["replicas"]:  # noqa: ASYNC110 - seen by HTTP only
                await asyncio.sleep(0.05)
    async with database.transaction() as session:
        query = text("select count(*), count(distinct endpoint_id), max((spans->>'ready')::float) from replicas")
        count, endpoints, slowest_s = (await session.execute(query)).one()
    assert lost > 0 and (count, endpoints) == (5, 5), "each was started once"
    print(f"F21: {lost} bells lost; 5 of 5 started once and gone; the slowest {slowest_s:.2f} s, ticks {TICK_S} s")
