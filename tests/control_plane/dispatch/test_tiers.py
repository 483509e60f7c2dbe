"""Where a start's weights are: in a parked replica, or on another node, through the loops as they run."""

from collections.abc import AsyncGenerator
from uuid import UUID

import pytest

from control_plane.db.session import Database
from control_plane.endpoints import life
from control_plane.settings import Settings
from tests.control_plane.conftest import TestKeys
from tests.control_plane.dispatch.test_cycle import Fleet, control_plane
from tests.fakes.fleet import add_model

pytestmark = pytest.mark.timeout(40)


@pytest.fixture
async def fleet(settings: Settings, keys: TestKeys, database: Database, tenant_id: UUID) -> AsyncGenerator[Fleet]:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
    async with control_plane(settings, keys) as fleet:
        await fleet.agent.register()
        yield fleet


async def test_a_parked_replica_serves_again_and_the_ledger_has_both_starts(fleet: Fleet, database: Database) -> None:
    endpoint = await fleet.deploy()
    await fleet.gateway.wake(endpoint["id"])
    [wanted] = await fleet.agent.desired(wait_s=5)
    await fleet.agent.make_ready(wanted)
    async with database.transaction() as session:
        held = await life.hold(session, UUID(endpoint["id"]))
        assert held is not None
        held.endpoint.desired = 0
        await life.park(session, held, held.replicas[0], "Nobody asks.")
    [parking] = await fleet.agent.desired(wait_s=5)
    assert parking.id == wanted.id and parking.intent == "park"
    assert (await fleet.gateway.route()).replicas == ()
    await fleet.agent.say(wanted, "parked", spans={})
    assert (await fleet.gateway.route()).state == "zero"
    async with database.transaction() as session:
        held = await life.hold(session, UUID(endpoint["id"]))
        assert held is not None
        held.endpoint.desired = 1
        await life.unpark(session, held, held.replicas[0], "Somebody asks.")
    [back] = await fleet.agent.desired(wait_s=5)
    route = await fleet.gateway.route()
    assert back.intent == "run" and (route.state, route.phase) == ("waking", "parked")
    await fleet.agent.say(wanted, "ready", spans={"unpark": 0.002})
    assert (await fleet.gateway.route()).state == "live"
    await fleet.agent.say(wanted, "ready", spans={"unpark": 0.002, "route": 0.01, "first_token": 0.1})
    last, first = (await fleet.get("/starts"))["items"]
    assert (last["tier"], last["outcome"], last["bound_s"]) == ("parked", "ready", 0.0)
    assert last["spans"]["first_token"] == 0.1 and "load" not in last["spans"] and last["total_s"] < 30
    assert first["tier"] == "cached" and "load" in first["spans"] and last["replica"] == first["replica"]
