"""Usage from a gateway's report to REST: stored once, summed by hour, told to its tenant only, deleted when old."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient
from sqlalchemy import func, select, text, update

from control_plane.db import lease
from control_plane.db.bells import Bells
from control_plane.db.loop import Leadership
from control_plane.db.session import Database
from control_plane.settings import SettingsError, read
from control_plane.tenants.service import create_key, ensure_tenant
from control_plane.usage.loop import PAUSE_S, UsageLoop
from control_plane.usage.tables import UsageBlockTable, UsageHourTable
from data_plane.wire.routes import DemandReport
from data_plane.wire.usage import EndpointUsage, UsageBatch, UsageRow
from tests.control_plane.conftest import TestKeys
from tests.fakes.fleet import add_model

Client = AsyncTestClient[Litestar]
HOUR_MS = 3_600_000


@pytest.fixture
async def endpoint_id(client: Client, database: Database, tenant_id: UUID) -> str:
    async with database.transaction() as session:
        await add_model(session, tenant_id)
    answer = await client.post("/api/v1/endpoints", json={"name": "chat", "model": "tiny"})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def rows(*ages_s: float, is_cold: bool = False, **fields: int) -> list[UsageRow]:
    """Requests that came so long ago."""
    now = int(time.time() * 1000)
    facts = {"ending": 0, "count": 1, "first_ms": 100, "ms": 400, "prompt": 50, "cached": 16, **fields}
    facts = {"completion": 20, **facts}
    return [UsageRow(now - int(age * 1000), is_cold=is_cold, **facts) for age in ages_s]


async def report(
    client: Client, keys: TestKeys, endpoint_id: str, told: list[UsageRow], number: int = 1, **changes: Any
) -> None:
    batch = UsageBatch("b1", number, [EndpointUsage(endpoint_id, "key-1", told)])
    batch = msgspec.structs.replace(batch, **changes)
    body = msgspec.json.encode(DemandReport("gateway", (), usage=batch))
    answer = await client.post("/internal/v1/gateway/demand", content=body, headers=keys.headers(keys.node))
    assert answer.status_code == 204, answer.text


async def usage(client: Client, **params: Any) -> list[dict[str, Any]]:
    answer = await client.get("/api/v1/usage", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


async def test_a_batch_that_comes_again_counts_once(client: Client, keys: TestKeys, endpoint_id: str) -> None:
    told = [*rows(1, 2), *rows(3, ending=1, first_ms=-1), *rows(4, ending=2, is_cold=True, first_ms=-1)]
    for number in (1, 1, 2, 1):
        await report(client, keys, endpoint_id, told, number)
    await report(client, keys, endpoint_id, told, 1, boot="b2")
    (one,) = await usage(client, by="endpoint")
    counts = {"requests": 12, "refused": 3, "failed": 3, "cancelled": 0, "cold": 3, "prompt_tokens": 600}
    assert one == {
        **counts,
        **{"endpoint": "chat", "key": None, "at": None, "cold_share": round(3 / 9, 6), "cached_tokens": 192},
        **{"completion_tokens": 240, "mean_ms": 400.0, "ttft_p50_ms": one["ttft_p50_ms"]},
        "ttft_p95_ms": one["ttft_p95_ms"],
    }
    assert 80 < one["ttft_p50_ms"] <= one["ttft_p95_ms"] < 120
    (by_key,) = await usage(client, by="key")
    assert (by_key["key"], by_key["requests"]) == ("key-1", 12)


async def test_hours_and_days_add_up_and_are_paged(client: Client, keys: TestKeys, endpoint_id: str) -> None:
    ages = [hours * 3600.0 for hours in range(30)]
    await report(client, keys, endpoint_id, rows(*ages))
    hours = await usage(client)
    assert [each["requests"] for each in hours] == [1] * 30
    assert hours == sorted(hours, key=lambda each: each["at"])
    days = await usage(client, by="day")
    assert sum(each["requests"] for each in days) == 30 and len(days) in (2, 3)
    paged: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        answer = (await client.get("/api/v1/usage", params={"limit": 7, **after})).json()
        paged += answer["items"]
        if answer["next"] is None:
            break
        after = {"after": answer["next"]}
    assert paged == hours
    since = datetime.now(UTC) - timedelta(hours=3)
    assert 3 <= len(await usage(client, since=since.isoformat())) <= 4
    assert await usage(client, endpoint="other") == []


async def test_single_requests_come_in_blocks(client: Client, keys: TestKeys, endpoint_id: str) -> None:
    for number in range(1, 4):
        await report(client, keys, endpoint_id, rows(number), number)
    first = (await client.get("/api/v1/usage/requests", params={"limit": 2})).json()
    rest = (await client.get("/api/v1/usage/requests", params={"limit": 2, "after": first["next"]})).json()
    assert rest["next"] is None and len(first["items"]) == 2 and len(rest["items"]) == 1
    block = first["items"][0]
    told = dict(zip(first["columns"], block["requests"][0], strict=True))
    assert (block["endpoint"], block["key"], first["endings"][told["ending"]]) == ("chat", "key-1", "ok")
    assert {**told, "at_ms": 0} == {
        **{"at_ms": 0, "ending": 0, "is_cold": 0, "count": 1, "first_ms": 100, "ms": 400},
        **{"prompt": 50, "cached": 16, "completion": 20},
    }


async def test_nobody_sees_anothers(
    client: Client, keys: TestKeys, endpoint_id: str, database: Database, bells: Bells
) -> None:
    with bells.listen("keys") as listener:
        async with database.transaction() as session:
            _, key = await create_key(session, await ensure_tenant(session, "other"), name="admin", scopes=["admin"])
        assert await listener.wait(5)
    await report(client, keys, endpoint_id, rows(1))
    other = keys.headers(key)
    for path in ("/api/v1/usage", "/api/v1/usage/requests"):
        assert (await client.get(path, headers=other)).json()["items"] == []
        assert (await client.get(path, headers=keys.headers(keys.read))).json()["items"] != []
        assert (await client.get(path, headers=keys.headers(keys.infer))).status_code == 403


async def test_what_belongs_to_nobody_is_left_out_and_the_deleted_keep_theirs(
    client: Client, keys: TestKeys, endpoint_id: str
) -> None:
    await client.delete("/api/v1/endpoints/chat")
    told = [EndpointUsage(each, "key-1", rows(1)) for each in (endpoint_id, str(uuid4()), "no id")]
    await report(client, keys, endpoint_id, [], endpoints=told)
    assert [each["requests"] for each in await usage(client)] == [1]


async def test_usage_that_cannot_be_stored_does_not_stand_in_the_way(
    client: Client, keys: TestKeys, endpoint_id: str, database: Database
) -> None:
    """Sums beyond what the columns hold: the report is taken all the same, and the next one's usage too."""
    await report(client, keys, endpoint_id, rows(1, first_ms=1, count=2**31 - 1))
    await report(client, keys, endpoint_id, rows(1, first_ms=1, count=2**31 - 1), 2)
    await report(client, keys, endpoint_id, rows(1), 3)
    assert [each["requests"] for each in await usage(client, by="endpoint")] == [2**31]


async def test_bad_questions_are_refused(client: Client) -> None:
    for params, param in (
        ({"by": "week"}, "by"),
        ({"limit": 0}, "limit"),
        ({"since": "soon"}, "since"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "since"),
        ({"until": "9999-12-31T23:59:59-12:00"}, "until"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since"),
        ({"after": "yesterday"}, "after"),
        ({"after": "2026-01-01T00:00:00Z/chat", "by": "key"}, "after"),
    ):
        answer = await client.get("/api/v1/usage", params=params)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


async def test_the_old_is_deleted_a_little_at_a_time(
    client: Client, keys: TestKeys, endpoint_id: str, database: Database
) -> None:
    for number in range(1, 6):
        await report(client, keys, endpoint_id, rows(number * 3600), number)
    long_ago = datetime.now(UTC) - timedelta(days=31)
    async with database.transaction() as session:
        old = select(UsageBlockTable.id).order_by(UsageBlockTable.id).limit(3)
        stale = update(UsageBlockTable).where(UsageBlockTable.id.in_(old.scalar_subquery()))
        await session.execute(stale.values(last_at=long_ago))
        await session.execute(
            update(UsageHourTable).values(hour=UsageHourTable.hour.op("-")(text("interval '31 days'")))
        )
    loop = UsageLoop(30, most=2)
    async with database.transaction() as session:
        epoch = await lease.acquire(session, "one")
    assert epoch is not None
    waits = [await loop.tick(Leadership(database, epoch)) for _ in range(3)]
    assert waits == [PAUSE_S, PAUSE_S, None]
    async with database.transaction() as session:
        counts = [
            (await session.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (UsageBlockTable, UsageHourTable)
        ]
    assert counts == [2, 0]


def test_how_long_it_is_kept_is_a_setting() -> None:
    def days(text: str) -> int:
        return read("ebb", [], {"EBB_DATABASE_URL": "postgresql://h/n", "EBB_USAGE_DAYS": text}).usage_days

    assert (days(""), days("400")) == (30, 400)
    for given in ("0", "-1", "1.5", "forever", "99999", "٣"):
        with pytest.raises(SettingsError, match="number of days from 1 to 3660"):
            days(given)
