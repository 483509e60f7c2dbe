"""Nodes are cordoned, drained and removed; replicas move without a gap; one whose link flaps is the second choice."""

from datetime import timedelta
from uuid import UUID

import pytest
from httpx import ASGITransport, AsyncClient
from litestar import Litestar
from litestar.testing import AsyncTestClient
from sqlalchemy import select, update

from control_plane.db import lease
from control_plane.db.clock import db_now
from control_plane.db.loop import Leadership
from control_plane.db.session import Database
from control_plane.dispatch.loop import DispatchLoop
from control_plane.endpoints import service
from control_plane.endpoints.schemas import NewEndpoint
from control_plane.nodes.lease import LeaseTerms
from control_plane.nodes.tables import NodeTable
from control_plane.placement.loop import PlacementLoop
from tests.control_plane.conftest import TestKeys
from tests.fakes.fleet import FakeAgent, add_model

Client = AsyncTestClient[Litestar]


@pytest.fixture
async def agents(app: Litestar, keys: TestKeys) -> tuple[FakeAgent, FakeAgent]:
    client = AsyncClient(transport=ASGITransport(app), base_url="http://control")  # pyright: ignore[reportArgumentType]
    pair = FakeAgent(client, keys.node, "a"), FakeAgent(client, keys.node, "b")
    for agent in pair:
        await agent.register()
    return pair


@pytest.fixture
async def leadership(database: Database, tenant_id: UUID) -> Leadership:
    """With one endpoint that wants two replicas."""
    async with database.transaction() as session:
        await add_model(session, tenant_id)
        await service.deploy(session, tenant_id, NewEndpoint("chat", "tiny", min=2, max=2))
        epoch = await lease.acquire(session, "one")
    assert epoch is not None
    return Leadership(database, epoch)


async def settle(leadership: Leadership, *agents: FakeAgent) -> None:
    """Places, and lets the agents make ready what they were given."""
    await PlacementLoop().tick(leadership)
    for agent in agents:
        for wanted in await agent.desired():
            if wanted.intent == "run" and wanted.id not in agent.replicas:
                await agent.make_ready(wanted)


async def intents(agent: FakeAgent) -> list[str]:
    return sorted(wanted.intent for wanted in await agent.desired())


async def test_a_drain_starts_the_successor_first(
    agents: tuple[FakeAgent, FakeAgent], leadership: Leadership, client: Client
) -> None:
    a, b = agents
    await settle(leadership, a, b)
    assert (await intents(a), await intents(b)) == (["run"], ["run"])
    node = (await client.post("/api/v1/nodes/b/drain")).json()
    assert (node["state"], node["replicas"], node["cordoned"]) == ("draining", 1, True)
    await PlacementLoop().tick(leadership)
    assert (await intents(a), await intents(b)) == (["run", "run"], ["run"]), "both serve until the new one does"
    await settle(leadership, a)
    await PlacementLoop().tick(leadership)
    [leaving] = await b.desired()
    assert leaving.intent == "drain"
    await b.say(leaving, "draining")
    await b.say(leaving, "stopped")
    assert (await client.get("/api/v1/nodes/b")).json()["replicas"] == 0
    await PlacementLoop().tick(leadership)
    assert await intents(b) == []


async def test_without_room_elsewhere_it_stays_and_serves(
    agents: tuple[FakeAgent, FakeAgent], leadership: Leadership, client: Client
) -> None:
    a, b = agents
    await settle(leadership, a, b)
    await client.post("/api/v1/nodes/a/cordon")
    await client.post("/api/v1/nodes/b/drain")
    await PlacementLoop().tick(leadership)
    assert (await intents(a), await intents(b)) == (["run"], ["run"])
    await client.post("/api/v1/nodes/b/uncordon")
    assert (await client.get("/api/v1/nodes/b")).json()["state"] == "ready"
    await PlacementLoop().tick(leadership)
    assert (await intents(a), await intents(b)) == (["run"], ["run"])


async def test_a_node_with_replicas_is_not_removed_without_force(
    agents: tuple[FakeAgent, FakeAgent], leadership: Leadership, client: Client, database: Database
) -> None:
    a, b = agents
    await settle(leadership, a, b)
    running = await client.delete("/api/v1/nodes/b")
    assert running.status_code == 409 and running.json()["error"]["code"] == "node_has_key"
    async with database.transaction() as session:
        await session.execute(update(NodeTable).values(joined=True))
    used = await client.delete("/api/v1/nodes/b")
    assert used.status_code == 409 and "ebb nodes drain b" in used.json()["error"]["message"]
    assert (await client.delete("/api/v1/nodes/b?force=true")).status_code == 204
    assert (await client.get("/api/v1/nodes/b")).status_code == 404
    await PlacementLoop().tick(leadership)
    assert await intents(a) == ["run", "run"]


async def test_a_node_back_from_silence_is_the_second_choice(
    agents: tuple[FakeAgent, FakeAgent], leadership: Leadership, database: Database
) -> None:
    a, b = agents
    async with database.transaction() as session:
        gone = await db_now(session) - timedelta(seconds=60)
        await session.execute(update(NodeTable).where(NodeTable.name == "b").values(last_seen_at=gone))
    assert (await b.report()).status_code == 204
    await PlacementLoop().tick(leadership)
    assert (await intents(a), await intents(b)) == (["run", "run"], []), "spread would have put one on each"


async def test_who_could_not_hear_calls_nobody_lost(
    agents: tuple[FakeAgent, FakeAgent], leadership: Leadership, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("control_plane.dispatch.loop.time.monotonic", lambda: now[0])
    loop = DispatchLoop(LeaseTerms(10.0))

    async def tick_at(at: float) -> set[str]:
        now[0] = at
        await loop.tick(leadership)
        async with database.transaction() as session:
            return set((await session.execute(select(NodeTable.status))).scalars())

    for at in (1003.0, 1010.0, 1017.0):
        assert await tick_at(at) == {"ready"}
    async with database.transaction() as session:
        gone = await db_now(session) - timedelta(seconds=60)
        await session.execute(update(NodeTable).values(last_seen_at=gone))
    assert await tick_at(1077.0) == {"ready"}, "the database was away for a minute: that was not the nodes' silence"
    assert await tick_at(1087.0) == {"ready"}
    assert await tick_at(1093.0) == {"lost"}
