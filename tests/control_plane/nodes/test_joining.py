"""A machine becomes a node, proves it, and is removed; what else is presented is refused with a sentence."""

from datetime import timedelta
from uuid import UUID

import httpx
import pytest
from httpx import ASGITransport, AsyncClient
from litestar import Litestar
from litestar.testing import AsyncTestClient
from sqlalchemy import update

from control_plane.db.clock import db_now
from control_plane.db.session import Database
from control_plane.nodes import credentials, joining
from control_plane.nodes.metrics import NODES, STALE
from control_plane.nodes.tables import JoinTokenTable, NodeTable
from tests.control_plane.conftest import TestKeys
from tests.fakes.fleet import FakeAgent

Client = AsyncTestClient[Litestar]


def refused() -> float:
    return NODES.get_sample_value("ebb_node_refusals_total", {"reason": STALE}) or 0.0


async def token_from(client: Client, **body: object) -> str:
    answer = await client.post("/api/v1/nodes/tokens", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["token"]


async def join(client: Client, token: str, name: str = "second") -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return await client.post("/internal/v1/nodes/join", json={"name": name}, headers=headers)


def said(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
async def second(client: Client, app: Litestar) -> FakeAgent:
    """The agent of a node that joined and registered."""
    joined = (await join(client, await token_from(client))).json()
    agent = FakeAgent(
        AsyncClient(transport=ASGITransport(app), base_url="http://control"),  # pyright: ignore[reportArgumentType]
        joined["credential"]["token"],
        "second",
    )
    welcome = await agent.register()
    assert welcome.node_id == joined["node_id"] and welcome.credential is not None
    return agent


async def test_a_token_works_once_and_says_who_used_it(client: Client) -> None:
    token = await token_from(client)
    assert (await join(client, token)).status_code == 200
    again = await join(client, token, "third")
    assert said(again) == (401, "join_token_used")
    message = again.json()["error"]["message"]
    assert "node 'second'" in message and "ebb nodes token" in message


async def test_an_expired_or_unknown_token_is_refused(client: Client, database: Database) -> None:
    token = await token_from(client, ttl_s=60)
    async with database.transaction() as session:
        past = await db_now(session) - timedelta(seconds=1)
        await session.execute(update(JoinTokenTable).values(expires_at=past))
    expired = await join(client, token)
    assert said(expired) == (401, "join_token_expired") and "--ttl" in expired.json()["error"]["message"]
    for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), "ebbj_000000000000.x", "ebbj_", "ebbj_."):
        assert said(await join(client, wrong)) == (401, "invalid_api_key")


async def test_a_taken_name_keeps_the_token(client: Client) -> None:
    assert (await join(client, await token_from(client))).status_code == 200
    token = await token_from(client)
    clash = await join(client, token)
    assert said(clash) == (409, "already_exists") and "--name" in clash.json()["error"]["message"]
    assert said(await join(client, token, "../x")) == (400, None)
    assert (await join(client, token, "third")).status_code == 200


async def test_only_an_administrator_makes_tokens_and_only_a_token_joins(client: Client, keys: TestKeys) -> None:
    for key in (keys.read, keys.node, keys.infer):
        answer = await client.post("/api/v1/nodes/tokens", json={}, headers=keys.headers(key))
        assert answer.status_code == 403
    assert (await join(client, keys.admin)).status_code == 403
    token = await token_from(client)
    for path in ("/api/v1/nodes", "/internal/v1/gateway/state", "/metrics"):
        assert (await client.get(path, headers=keys.headers(token))).status_code == 403, path


async def test_a_credential_opens_its_own_nodes_addresses_and_no_other(second: FakeAgent, client: Client) -> None:
    assert (await second.report()).status_code == 204
    assert await second.desired() == ()
    headers = {"authorization": f"Bearer {second.key}"}
    for path in ("/api/v1/nodes", "/internal/v1/gateway/state", "/api/v1/keys", "/metrics"):
        assert (await client.get(path, headers=headers)).status_code == 403, path
    other, second.node_id = second.node_id, str(UUID(int=7))
    assert said(await second.report()) == (403, "another_nodes_credential")
    second.node_id, second.name = other, "box"
    with pytest.raises(AssertionError, match="is not that of node 'box'"):
        await second.register()


async def test_a_credential_is_renewed_also_when_it_has_expired_but_not_for_ever(
    second: FakeAgent, database: Database, client: Client
) -> None:
    async def credential(expired_s: float) -> str:
        async with database.transaction() as session:
            now = (await db_now(session)).timestamp()
            node = await session.get_one(NodeTable, UUID(second.node_id))
            claims = credentials.Claims(second.node_id, str(node.tenant_id), node.epoch, now - expired_s)
            return credentials.sign(claims, await joining.signing_secret(session))

    async def renewed() -> httpx.Response:
        headers = {"authorization": f"Bearer {second.key}"}
        return await client.post(f"/internal/v1/nodes/{second.node_id}/credential", headers=headers)

    second.key = await credential(5.0)
    assert said(await second.report()) == (401, "credential_expired")
    second.key = (await renewed()).json()["token"]
    assert (await second.report()).status_code == 204
    second.key = await credential(credentials.RENEWABLE_S + 5.0)
    late = await renewed()
    assert said(late) == (401, "credential_expired") and "ebb nodes rm second" in late.json()["error"]["message"]


async def test_a_removed_nodes_credential_is_refused_and_its_name_is_free(second: FakeAgent, client: Client) -> None:
    assert (await client.delete("/api/v1/nodes/second")).status_code == 204
    assert said(await second.report()) == (401, "node_removed")
    with pytest.raises(AssertionError, match="Join again with a token"):
        await second.register()
    assert (await client.get("/api/v1/nodes")).json()["items"] == []
    again = await join(client, await token_from(client))
    assert again.status_code == 200 and again.json()["node_id"] != second.node_id


async def test_an_older_epoch_is_refused_and_counted(second: FakeAgent) -> None:
    before, old_epoch, old_key = refused(), second.epoch, second.key
    await second.register()
    assert second.epoch == old_epoch + 1
    assert said(await second.report(epoch=old_epoch)) == (409, "stale_epoch")
    assert refused() == before + 1
    assert (await second.report()).status_code == 204
    second.key = old_key
    assert said(await second.report()) == (409, "stale_epoch"), "a credential is for one epoch"


async def test_of_two_machines_with_one_name_the_one_that_is_heard_goes_on(
    app: Litestar, keys: TestKeys, database: Database
) -> None:
    client = AsyncClient(transport=ASGITransport(app), base_url="http://control")  # pyright: ignore[reportArgumentType]
    first, clone = (FakeAgent(client, keys.node, machine=machine) for machine in ("one", "two"))
    await first.register()
    with pytest.raises(AssertionError, match="Two machines must not share a name"):
        await clone.register()
    assert (await first.report()).status_code == 204, "it is not fenced off"
    await first.register()
    async with database.transaction() as session:
        long_ago = await db_now(session) - timedelta(seconds=60)
        await session.execute(update(NodeTable).values(last_seen_at=long_ago))
    await clone.register()
    assert clone.epoch == first.epoch + 1
    assert said(await first.report()) == (409, "stale_epoch")
