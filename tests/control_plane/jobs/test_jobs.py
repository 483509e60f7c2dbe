"""A job's life: claimed once, kept by heartbeats, queued again when its worker is lost, given up at last."""

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from control_plane.catalog.service import add_model, get_model
from control_plane.db import lease
from control_plane.db.loop import Leadership
from control_plane.db.outbox import JobTable
from control_plane.db.session import Database
from control_plane.errors import StaleEpoch
from control_plane.jobs import service
from control_plane.jobs.loop import JobsLoop


class Published:
    """Hints that went out; fails on demand."""

    def __init__(self) -> None:
        self.ids: list[UUID] = []
        self.down = False

    def publish(self, job_id: UUID) -> None:
        if self.down:
            raise ConnectionError("the broker is down")
        self.ids.append(job_id)


@pytest.fixture
async def job_id(database: Database, tenant_id: UUID) -> UUID:
    """A queued import."""
    async with database.transaction() as session:
        return (await add_model(session, tenant_id, "tiny", "pypi:x"))[1].id


@pytest.fixture
async def leadership(database: Database) -> Leadership:
    """The lease, taken."""
    async with database.transaction() as session:
        epoch = await lease.acquire(session, "test")
    assert epoch is not None
    return Leadership(database, epoch)


async def _row(database: Database, job_id: UUID) -> JobTable:
    async with database.transaction() as session:
        row = await session.get(JobTable, job_id)
        assert row is not None
        return row


async def _expire(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("update jobs set lease_until = clock_timestamp() - interval '1 second'"))


async def test_doubled_hints_claim_once(database: Database, job_id: UUID) -> None:
    async def claim(worker: str) -> bool:
        async with database.transaction() as session:
            return await service.claim(session, job_id, worker) is not None

    assert sum(await asyncio.gather(*(claim(f"w{n}") for n in range(4)))) == 1
    assert not await claim("late")
    async with database.transaction() as session:
        assert await service.claim(session, uuid4(), "w") is None
    row = await _row(database, job_id)
    assert (row.status, row.attempts) == ("running", 1) and row.started_at is not None


async def test_only_the_holder_writes(database: Database, job_id: UUID) -> None:
    async with database.transaction() as session:
        await service.claim(session, job_id, "a")
    async with database.transaction() as session:
        await service.progress(session, job_id, "a", "download", 1, 2)
    with pytest.raises(StaleEpoch):
        async with database.transaction() as session:
            await service.heartbeat(session, job_id, "b")
    row = await _row(database, job_id)
    assert row.progress == {"stage": "download", "done": 1, "total": 2}


async def test_a_lost_workers_job_is_tried_three_times(
    database: Database, tenant_id: UUID, job_id: UUID, leadership: Leadership
) -> None:
    published = Published()
    loop = JobsLoop(published)
    for attempt in (1, 2, 3):
        async with database.transaction() as session:
            assert await service.claim(session, job_id, f"w{attempt}") is not None
        sooner_s = await loop.tick(leadership)
        assert sooner_s is not None and 0 < sooner_s <= service.LEASE_S
        await _expire(database)
        await loop.tick(leadership)
        with pytest.raises(StaleEpoch):
            async with database.transaction() as session:
                await service.heartbeat(session, job_id, f"w{attempt}")
    row = await _row(database, job_id)
    assert (row.status, row.attempts) == ("failed", 3)
    assert row.error is not None and "was lost" in row.error and "given up" in row.error
    assert published.ids == [job_id, job_id]
    async with database.transaction() as session:
        assert (await get_model(session, tenant_id, "tiny")).status == "failed"


async def test_hints_are_sent_again_ever_more_rarely(database: Database, job_id: UUID, leadership: Leadership) -> None:
    published = Published()
    loop = JobsLoop(published)
    assert (await loop.tick(leadership) or 0) <= 2
    await loop.tick(leadership)
    assert published.ids == [job_id]
    for hints, pause_s in ((2, 2), (3, 2), (4, 2), (5, 4), (6, 8)):
        async with database.transaction() as session:
            shift = text(f"update jobs set hinted_at = hinted_at - interval '{pause_s} seconds'")
            await session.execute(shift)
        await loop.tick(leadership)
        assert published.ids == [job_id] * hints


async def test_a_hint_that_could_not_leave_is_sent_later(
    database: Database, job_id: UUID, leadership: Leadership
) -> None:
    published = Published()
    published.down = True
    loop = JobsLoop(published)
    for _ in range(9):
        again_s = await loop.tick(leadership)
        assert again_s is not None and again_s <= 5
    assert published.ids == [] and (await _row(database, job_id)).hints == 0
    published.down = False
    await loop.tick(leadership)
    assert published.ids == [job_id]


async def test_an_old_leader_hints_nothing(database: Database, job_id: UUID, leadership: Leadership) -> None:
    async with database.transaction() as session:
        await lease.acquire(session, "test")
    published = Published()
    with pytest.raises(StaleEpoch):
        await JobsLoop(published).tick(leadership)
    assert published.ids == [] and (await _row(database, job_id)).hints == 0
