"""API keys: shown once, checked on every route, gone when revoked."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient
from sqlalchemy import text, update

from control_plane.db.bells import Bells
from control_plane.db.session import Database
from control_plane.tenants.auth import OPEN_PATHS
from control_plane.tenants.service import ensure_key, key_records
from control_plane.tenants.tables import KeyTable
from data_plane.wire.keys import KeyLimits, KeyRecord

Client = AsyncTestClient[Litestar]


def _routes(app: Litestar) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for route in app.routes:
        path = route.path
        for component in route.path_components:
            if not isinstance(component, str):
                path = path.replace("{" + component.full + "}", str(uuid4()) if component.type is not str else "some")
        found += [(method, path) for method in sorted(getattr(route, "methods", []))]
    return found


async def test_every_route_but_two_wants_a_key(app: Litestar, anonymous: Client) -> None:
    routes = _routes(app)
    assert len(routes) > 15
    for method, path in [*routes, ("GET", "/nowhere"), ("GET", "/schema/x"), ("GET", "/healthz/")]:
        answer = await anonymous.request(method, path, headers={"authorization": "Bearer ebb_0.x"})
        if path in OPEN_PATHS:
            assert answer.status_code in (200, 204), (method, path)
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "invalid_api_key"


SCOPES = ("open", "read", "admin", "node", "infer", "agent", "renew", "join")


async def test_every_route_names_its_scope(app: Litestar) -> None:
    for route in app.routes:
        for handler in getattr(route, "route_handlers", []):
            if "OPTIONS" in handler.http_methods:
                continue
            assert handler.opt.get("scope") in SCOPES, route.path


async def test_scopes(anonymous: Client, keys: Any) -> None:
    for key, read, write in ((keys.read, 200, 403), (keys.infer, 403, 403), (keys.node, 403, 403)):
        assert (await anonymous.get("/api/v1/keys", headers=keys.headers(key))).status_code == read
        made = await anonymous.post("/api/v1/keys", headers=keys.headers(key), json={"name": "a", "scopes": ["read"]})
        assert made.status_code == write
        if write == 403:
            assert made.json()["error"]["type"] == "permission_error"


async def test_made_listed_used_revoked(client: Client, anonymous: Client, keys: Any) -> None:
    made = await client.post("/api/v1/keys", json={"name": "ci", "scopes": ["read"], "expires_in_s": 60})
    assert made.status_code == 201
    key = made.json()["key"]
    used = await client.get("/api/v1/models", headers=keys.headers(key))
    assert used.status_code == 200
    listed = (await client.get("/api/v1/keys")).json()["items"]
    entry = next(item for item in listed if item["id"] == made.json()["id"])
    assert "key" not in entry and entry["name"] == "ci" and entry["expires_at"].endswith("Z")
    assert key.partition(".")[2] not in str(listed)
    assert (await client.delete(f"/api/v1/keys/{entry['id']}")).status_code == 204
    assert (await client.delete(f"/api/v1/keys/{entry['id']}")).status_code == 404
    async with asyncio.timeout(5):
        while used.status_code != 401:
            used = await client.get("/api/v1/models", headers=keys.headers(key))


async def test_a_keys_class_and_limits_reach_the_gateways(client: Client, database: Database, keys: Any) -> None:
    body = {"name": "batch", "scopes": ["infer"], "priority": "low", "requests_per_minute": 60, "max_concurrency": 4}
    made = (await client.post("/api/v1/keys", json=body)).json()
    assert (made["priority"], made["requests_per_minute"], made["tokens_per_minute"]) == ("low", 60, None)

    async def record() -> KeyRecord:
        async with database.transaction() as session:
            return next(one for one in await key_records(session) if one.id == made["id"])

    assert (await record()).limits == KeyLimits(max_concurrency=4, requests_per_minute=60)
    change = {"tokens_per_minute": 1000, "requests_per_minute": None}
    changed = await client.patch(f"/api/v1/keys/{made['id']}", json=change)
    assert changed.status_code == 200, changed.text
    assert "key" not in changed.json()
    assert (await record()).limits == KeyLimits(max_concurrency=4, tokens_per_minute=1000)
    assert (await record()).priority == "low", "what was left out stays"
    listed = (await client.get("/api/v1/keys")).json()["items"]
    assert next(item for item in listed if item["id"] == made["id"]) == changed.json()
    events = (await client.get("/api/v1/events")).json()["items"]
    assert any(event["type"] == "changed" and event["data"] == change for event in events)
    refused = await client.patch(
        f"/api/v1/keys/{made['id']}", headers=keys.headers(keys.read), json={"priority": "high"}
    )
    assert refused.status_code == 403
    assert (await client.patch(f"/api/v1/keys/{uuid4()}", json=change)).status_code == 404
    await client.delete(f"/api/v1/keys/{made['id']}")
    assert (await client.patch(f"/api/v1/keys/{made['id']}", json=change)).status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"priority": "urgent"}, "priority"),
        ({"priority": None}, "priority"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"requests_per_minute": 2**31}, "requests_per_minute"),
        ({"tokens_per_minute": "many"}, "tokens_per_minute"),
        ({"scopes": ["admin"]}, "scopes"),
    ],
)
async def test_a_bad_change_is_refused_with_the_field(client: Client, change: dict[str, Any], param: str) -> None:
    key = (await client.get("/api/v1/keys")).json()["items"][0]
    answer = await client.patch(f"/api/v1/keys/{key['id']}", json=change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_wrong_unknown_revoked_and_expired_are_answered_alike(
    anonymous: Client, database: Database, keys: Any
) -> None:
    async with database.transaction() as session:
        expired = await ensure_key(session, name="old", scopes=["read"], key=None)
        past = datetime.now(UTC) - timedelta(seconds=1)
        await session.execute(update(KeyTable).where(KeyTable.name == "old").values(expires_at=past))
    answers = [
        await anonymous.get("/api/v1/models", headers=headers)
        for headers in (
            {},
            {"authorization": "Basic abc"},
            keys.headers("nonsense"),
            keys.headers(keys.admin[:-1] + ("x" if keys.admin[-1] != "x" else "y")),
            keys.headers("ebb_000000000000." + "a" * 43),
            keys.headers(expired),
        )
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert all(answer.headers["www-authenticate"] == "Bearer" for answer in answers)


async def test_no_secret_is_stored(database: Database, keys: Any) -> None:
    secret = keys.admin.partition(".")[2]
    async with database.transaction() as session:
        rows = (await session.execute(text("select api_keys::text from api_keys"))).scalars().all()
    assert len(rows) == 4
    assert not any(secret in row for row in rows)


async def test_the_last_admin_key_stays(client: Client) -> None:
    listed = (await client.get("/api/v1/keys")).json()["items"]
    admin = next(item for item in listed if item["scopes"] == ["admin"])
    refused = await client.delete(f"/api/v1/keys/{admin['id']}")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "last_admin_key"


async def test_a_key_of_another_tenant_sees_nothing_of_this_one(client: Client, database: Database, keys: Any) -> None:
    async with database.transaction() as session:
        from control_plane.tenants.service import create_key, ensure_tenant

        _, other = await create_key(session, await ensure_tenant(session, "other"), name="o", scopes=["admin"])
    mine = (await client.get("/api/v1/keys")).json()["items"]
    theirs = (await client.get("/api/v1/keys", headers=keys.headers(other))).json()["items"]
    assert len(mine) == 4 and [item["name"] for item in theirs] == ["o"]
    assert (await client.delete(f"/api/v1/keys/{mine[1]['id']}", headers=keys.headers(other))).status_code == 404
    events = (await client.get("/api/v1/events", headers=keys.headers(other))).json()["items"]
    assert [event["reason"] for event in events] == ["Key 'o' was made."]


async def test_ensure_key_keeps_a_key_that_works_and_replaces_one_that_does_not(
    database: Database, bells: Bells
) -> None:
    with bells.listen("keys") as listener:
        async with database.transaction() as session:
            key = await ensure_key(session, name="a", scopes=["admin"], key=None)
        assert await listener.wait(5)
    async with database.transaction() as session:
        assert await ensure_key(session, name="a", scopes=["admin"], key=key) == key
        assert await ensure_key(session, name="a", scopes=["admin"], key="weak.password") != "weak.password"
        wanted = "ebb_0123456789ab." + "k" * 43
        assert await ensure_key(session, name="b", scopes=["node"], key=wanted) == wanted
    async with database.transaction() as session:
        await session.execute(update(KeyTable).where(KeyTable.prefix == key[:16]).values(revoked_at=datetime.now(UTC)))
        assert await ensure_key(session, name="a", scopes=["admin"], key=key) != key
        prefixes = {record.prefix for record in await key_records(session)}
    assert key[:16] not in prefixes and "ebb_0123456789ab" in prefixes


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "", "scopes": ["read"]}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "a", "scopes": ["read"], "expires_in_s": 0}, "expires_in_s"),
        ({"name": "a\u0000b", "scopes": ["read"]}, "name"),
        ({"scopes": ["read"]}, "name"),
        ({"name": "a", "scopes": ["read"], "admin": True}, "admin"),
    ],
)
async def test_bad_keys_are_refused_with_the_field(client: Client, body: dict[str, Any], param: str) -> None:
    answer = await client.post("/api/v1/keys", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
