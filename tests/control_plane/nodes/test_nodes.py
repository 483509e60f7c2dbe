"""Registration, epochs and lost nodes, against a real Postgres."""

from uuid import UUID

import pytest
from httpx import ASGITransport, AsyncClient
from litestar import Litestar
from sqlalchemy import select

from control_plane.db import lease
from control_plane.db.bells import Bells
from control_plane.db.loop import Leadership
from control_plane.db.session import Database
from control_plane.dispatch.loop import DispatchLoop
from control_plane.endpoints import service
from control_plane.endpoints.schemas import NewEndpoint
from control_plane.endpoints.tables import EndpointTable, ReplicaTable
from control_plane.errors import StaleEpoch
from control_plane.nodes.lease import LeaseTerms
from control_plane.nodes.tables import NodeTable
from control_plane.placement.loop import PlacementLoop
from tests.control_plane.conftest import TestKeys
from tests.fakes.fleet import FakeAgent, add_model


@pytest.fixture
async def agent(app: Litestar, keys: TestKeys) -> FakeAgent:
    agent = FakeAgent(AsyncClient(transport=ASGITransport(app), base_url="http://control"), keys.node)  # pyright: ignore[reportArgumentType]
    await agent.register()
    return agent


async def lead(database: Database, holder: str = "one") -> Leadership:
    async with database.transaction() as session:
        epoch = await lease.acquire(session, holder)
    assert epoch is not None
    return Leadership(database, epoch)


async def deploy_and_wake(database: Database, tenant_id: UUID) -> UUID:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
        held, is_new = await service.deploy(session, tenant_id, NewEndpoint("chat", "tiny"))
        assert is_new
        await service.wake_by_name(session, tenant_id, "chat")
        return held.endpoint.id


async def test_a_second_registration_fences_off_the_first(agent: FakeAgent) -> None:
    first = agent.epoch
    assert (await agent.report()).status_code == 204
    await agent.register()
    assert agent.epoch == first + 1
    stale = await agent.report(epoch=first)
    assert stale.status_code == 409 and stale.json()["error"]["code"] == "stale_epoch"
    agent.node_id = str(UUID(int=7))
    assert (await agent.report()).status_code == 404


async def test_bad_registrations_name_the_field(agent: FakeAgent) -> None:
    agent.name = "../box"
    with pytest.raises(AssertionError, match='"param":"name"'):
        await agent.register()


async def test_agents_need_their_scope(agent: FakeAgent, keys: TestKeys) -> None:
    agent.key = keys.infer
    assert (await agent.report()).status_code == 403


async def test_a_silent_node_is_lost_its_replica_replaced_and_its_runner_a_stranger(
    agent: FakeAgent, database: Database, tenant_id: UUID
) -> None:
    endpoint_id = await deploy_and_wake(database, tenant_id)
    leadership = await lead(database)
    await PlacementLoop().tick(leadership)
    [wanted] = await agent.desired()
    await agent.make_ready(wanted)

    await DispatchLoop(LeaseTerms(0.0), grace_s=60.0).tick(leadership)
    assert len(await agent.desired()) == 1, "a process that has just begun judges nobody"
    await DispatchLoop(LeaseTerms(0.0), grace_s=0.0).tick(leadership)
    async with database.transaction() as session:
        [node] = (await session.execute(select(NodeTable))).scalars()
        endpoint = await session.get_one(EndpointTable, endpoint_id)
        replica = await session.get_one(ReplicaTable, UUID(wanted.id))
        assert (node.status, replica.status, endpoint.state) == ("lost", "failed", "waking")
    await PlacementLoop().tick(leadership)
    assert await agent.desired() == (), "nothing is placed on a lost node"

    assert (await agent.report()).status_code == 204
    await PlacementLoop().tick(leadership)
    [fresh] = await agent.desired()
    assert fresh.id != wanted.id, "the old runner is not named any more, so the agent stops it"


async def test_a_leader_that_was_replaced_writes_nothing(
    agent: FakeAgent, database: Database, tenant_id: UUID, bells: Bells
) -> None:
    await deploy_and_wake(database, tenant_id)
    old = await lead(database)
    await lead(database)
    with pytest.raises(StaleEpoch):
        await PlacementLoop().tick(old)
    assert await agent.desired() == ()
