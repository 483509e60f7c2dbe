"""F18 and F19: a table that somebody holds locked, and more who want connections than the server gives."""

import asyncio
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from control_plane.db import metrics, session
from control_plane.db.session import Database
from control_plane.settings import Settings
from tests.control_plane.conftest import TestKeys
from tests.control_plane.dispatch.test_cycle import control_plane
from tests.fakes.fleet import add_model

pytestmark = pytest.mark.timeout(60)


async def test_f18_people_are_sent_away_before_agents_and_the_lead_is_kept(
    settings: Settings, keys: TestKeys, database: Database, tenant_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock timeout is shortened: it bounds how long each call may hold its connection."""
    monkeypatch.setattr(session, "LOCK_TIMEOUT_S", 2)
    async with database.transaction() as opened:
        await add_model(opened, tenant_id)
    shed = metrics.STORE.get_sample_value("ebb_control_shed_total") or 0.0
    async with control_plane(settings, keys) as fleet:
        await fleet.agent.register()
        await fleet.deploy()
        leads = "ebb_control_epoch 1.0"
        async with asyncio.timeout(20):
            while leads not in (await fleet.client.get("/metrics", headers=fleet.admin)).text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        with psycopg.connect(settings.database_url) as locker:
            locker.execute("lock table endpoints, api_keys in access exclusive mode")
            asking = [
                asyncio.create_task(fleet.client.get("/api/v1/endpoints", headers=fleet.admin)) for _ in range(40)
            ]
            reports: Counter[int] = Counter()
            while not all(task.done() for task in asking):
                reports[(await fleet.agent.report()).status_code] += 1
                assert (await fleet.client.get("/healthz")).status_code == 200
                await asyncio.sleep(0.02)
            locker.rollback()
        answers = await asyncio.gather(*asking)
        codes = Counter(answer.json()["error"]["code"] for answer in answers)
        assert {answer.status_code for answer in answers} == {503}
        assert all("retry-after" in answer.headers for answer in answers)
        assert codes["database_busy"] > 20, codes
        assert set(reports) == {204}, "the agent was heard all the while"
        assert (await fleet.client.get("/api/v1/endpoints", headers=fleet.admin)).status_code == 200
        assert leads in (await fleet.client.get("/metrics", headers=fleet.admin)).text, "the lead was lost"
    counted = (metrics.STORE.get_sample_value("ebb_control_shed_total") or 0.0) - shed
    print(f"F18: of 40 calls of people {dict(codes)}, {counted:g} shed; {reports[204]} reports of an agent, all taken")


@pytest.fixture
def squeezed(settings: Settings) -> Generator[tuple[Settings, psycopg.Connection]]:
    """Settings of a user who is no superuser, so that the server refuses it connections; the owner's connection."""
    role = f"ebb_few_{settings.database_url.rpartition('ebb_test_')[2][:12]}"
    with psycopg.connect(settings.database_url, autocommit=True) as owner:
        name = sql.Identifier(role)
        owner.execute(sql.SQL("create role {} login superuser").format(name))
        owner.execute(sql.SQL("alter role {} nosuperuser connection limit 3").format(name))
        owner.execute(sql.SQL("grant all on all tables in schema public to {}").format(name))
        owner.execute(sql.SQL("grant all on all sequences in schema public to {}").format(name))
        joint = "&" if "?" in settings.database_url else "?"
        yield replace(settings, database_url=f"{settings.database_url}{joint}user={role}"), owner
        owner.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (role,))
        owner.execute(sql.SQL("drop owned by {}").format(name))
        owner.execute(sql.SQL("drop role {}").format(name))


async def test_f19_a_connection_storm_ends_by_itself(
    squeezed: tuple[Settings, psycopg.Connection], keys: TestKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two control planes start at once where the server gives three connections; then it gives enough."""
    settings, owner = squeezed
    tried = {"connect": 0, "refused": 0}
    connect = psycopg.AsyncConnection.connect

    async def counted(*args: object, **options: object) -> object:
        tried["connect"] += 1
        try:
            return await connect(*args, **options)  # pyright: ignore[reportArgumentType]
        except psycopg.OperationalError as error:
            tried["refused"] += "too many connections" in str(error)
            raise

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", counted)
    async with (
        control_plane(settings, keys) as one,
        control_plane(replace(settings, instance="other"), keys) as other,
    ):
        both = (one, other)

        async def ask(count: int) -> Counter[int]:
            paths = [fleet.client.get("/api/v1/jobs", headers=fleet.admin) for fleet in both for _ in range(count)]
            return Counter([answer.status_code for answer in await asyncio.gather(*paths)])

        storm = await ask(20)
        assert set(storm) <= {200, 503}
        tried["connect"] = tried["refused"] = 0
        await asyncio.sleep(3)  # nobody asks: what is tried now is tried by loops
        loops, refused = tried["connect"], tried["refused"]
        assert loops < 60, f"{loops} connections were tried in 3 s of peace: back-off does not hold"
        owner.execute(f"alter role {role_of(settings)} connection limit 100".encode())
        async with asyncio.timeout(30):
            while set(await ask(20)) != {200}:  # noqa: ASYNC110 - seen by HTTP only
                await asyncio.sleep(0.2)
        count = owner.execute("select count(*) from pg_stat_activity where usename = %s", (role_of(settings),))
        [(most,)] = count.fetchall()
    assert most <= 2 * (6 + 6 + 1), "two pools and two listeners"
    print(
        f"F19: storm answered {dict(storm)}; {loops} tries in 3 s after it, {refused} refused; {most} connections then"
    )


def role_of(settings: Settings) -> str:
    return settings.database_url.rpartition("user=")[2]
