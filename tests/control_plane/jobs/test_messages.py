"""F21, F22, F23: hints that are lost, doubled, late, or not taken by the broker. A broker of lists, a clock that the
test turns: what it counts does not depend on how fast this machine is."""

import asyncio
import random
import threading
from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import text

from control_plane.catalog.service import add_model
from control_plane.db import lease, metrics
from control_plane.db.loop import Leadership
from control_plane.db.session import Database
from control_plane.jobs import service
from control_plane.jobs.loop import JobsLoop
from control_plane.jobs.sender import Sender

JOBS = 60
TICK_S = JobsLoop.interval_s


class Broker:
    """Loses `lost` of what it is given."""

    def __init__(self, lost: float) -> None:
        self.waiting: list[UUID] = []
        self.dropped = 0
        self._lost = lost
        self._chance = random.Random(21)

    def publish(self, job_id: UUID) -> None:
        if self._chance.random() < self._lost:
            self.dropped += 1
        else:
            self.waiting.append(job_id)


@pytest.fixture
async def leadership(database: Database) -> Leadership:
    """The lease, taken."""
    async with database.transaction() as session:
        epoch = await lease.acquire(session, "test", expiry_s=600)
    assert epoch is not None
    return Leadership(database, epoch)


async def _order(database: Database, tenant_id: UUID, count: int) -> list[UUID]:
    async with database.transaction() as session:
        return [(await add_model(session, tenant_id, f"m{number}", "pypi:x"))[1].id for number in range(count)]


async def _claim(database: Database, job_id: UUID, worker: str) -> bool:
    async with database.transaction() as session:
        row = await service.claim(session, job_id, worker)
        if row is not None:
            await service.finish(session, row, {})
        return row is not None


async def _pass(database: Database, seconds: float) -> None:
    async with database.transaction() as session:
        shift = text("update jobs set hinted_at = hinted_at - make_interval(secs => :s)")
        await session.execute(shift, {"s": seconds})


async def test_f21_with_three_of_ten_hints_lost_all_jobs_are_done_within_two_ticks(
    database: Database, tenant_id: UUID, leadership: Leadership
) -> None:
    await _order(database, tenant_id, JOBS)
    broker = Broker(lost=0.3)
    loop = JobsLoop(broker)
    done: dict[UUID, int] = {}
    for second in range(int(2 * TICK_S) + 1):
        await loop.tick(leadership)
        for job_id in broker.waiting:
            if await _claim(database, job_id, "w"):
                done[job_id] = second
        broker.waiting.clear()
        await _pass(database, 1.0)
    late = Counter(done.values())
    print(f"F21: {broker.dropped} hints lost; {len(done)} of {JOBS} jobs done, by second: {dict(sorted(late.items()))}")
    assert broker.dropped > JOBS * 0.3, "what was lost once was sent again, and partly lost again"
    assert len(done) == JOBS


async def test_f22_doubled_reordered_and_late_hints_run_each_job_once(
    database: Database, tenant_id: UUID, leadership: Leadership
) -> None:
    job_ids = await _order(database, tenant_id, 20)
    broker = Broker(lost=0.0)
    await JobsLoop(broker).tick(leadership)
    hints = broker.waiting * 3
    random.Random(22).shuffle(hints)
    claimed = Counter({job_id: 0 for job_id in job_ids})
    for start in range(0, len(hints), 4):
        batch = hints[start : start + 4]
        for job_id, mine in zip(batch, await asyncio.gather(*(_claim(database, id, "w") for id in batch)), strict=True):
            claimed[job_id] += mine
    assert set(claimed.values()) == {1}
    assert not any([await _claim(database, job_id, "late") for job_id in job_ids]), "they have ended"
    async with database.transaction() as session:
        rows = await session.execute(text("select distinct status, attempts from jobs"))
        assert [(str(status), int(attempts)) for status, attempts in rows] == [("done", 1)]
    print(f"F22: {len(hints) + len(job_ids)} hints for {len(job_ids)} jobs, each run once")


class Stuck:
    """A broker that blocks whoever publishes, until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.tried = 0
        self.sent: list[UUID] = []

    def publish(self, job_id: UUID) -> None:
        self.tried += 1
        self.free.wait(30)
        self.sent.append(job_id)


async def test_f23_a_broker_that_blocks_holds_up_one_thread_and_no_loop(
    database: Database, tenant_id: UUID, leadership: Leadership
) -> None:
    job_ids = await _order(database, tenant_id, 3)
    broker = Stuck()
    loop = JobsLoop(broker, Sender(deadline_s=0.2))
    unsent = metrics.STORE.get_sample_value("ebb_broker_unsent_total") or 0.0
    try:
        for _ in range(3):
            again_s = await loop.tick(leadership)
            assert again_s is not None and again_s <= TICK_S, "it has a deadline, and is tried again"
        assert broker.tried == 1, "no second one is begun beside one that is stuck"
        assert (metrics.STORE.get_sample_value("ebb_broker_unsent_total") or 0.0) == unsent + 9
    finally:
        broker.free.set()
    async with asyncio.timeout(10):
        while set(broker.sent) != set(job_ids):
            await loop.tick(leadership)
            await asyncio.sleep(0.02)
    async with database.transaction() as session:
        hints = (await session.execute(text("select distinct hints from jobs"))).scalars().all()
    assert list(hints) == [1], "what did not leave does not count: it is not repeated more rarely for that"
