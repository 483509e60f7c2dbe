"""One leader at a time; what an older one writes is refused."""

import asyncio

import pytest
from sqlalchemy import text

from control_plane.db import lease
from control_plane.db.bells import Bells, ring
from control_plane.db.loop import Leader, Leadership
from control_plane.db.session import Database
from control_plane.errors import StaleEpoch


async def _acquire(database: Database, holder: str, expiry_s: float = 10) -> int | None:
    async with database.transaction() as session:
        return await lease.acquire(session, holder, expiry_s=expiry_s)


async def test_one_holder_until_it_expires(database: Database) -> None:
    assert await _acquire(database, "a", expiry_s=0.5) == 1
    assert await _acquire(database, "b") is None
    await asyncio.sleep(0.6)
    assert await _acquire(database, "b") == 2
    async with database.transaction() as session:
        assert not await lease.renew(session, "a", 1)
        assert await lease.renew(session, "b", 2)


async def test_the_same_holder_restarted_takes_over_at_once(database: Database) -> None:
    assert await _acquire(database, "a") == 1
    assert await _acquire(database, "a") == 2
    async with database.transaction() as session:
        assert not await lease.renew(session, "a", 1)


async def test_a_released_lease_is_free(database: Database) -> None:
    assert await _acquire(database, "a") == 1
    async with database.transaction() as session:
        await lease.release(session, "a", 1)
    assert await _acquire(database, "b") == 2


async def test_an_older_epoch_writes_nothing(database: Database) -> None:
    assert await _acquire(database, "a") == 1
    old = Leadership(database, 1)
    async with old.transaction() as session:
        await session.execute(text("insert into tenants (id, name) values (gen_random_uuid(), 'kept')"))
    assert await _acquire(database, "a") == 2
    with pytest.raises(StaleEpoch):
        async with old.transaction() as session:
            await session.execute(text("insert into tenants (id, name) values (gen_random_uuid(), 'lost')"))
    async with database.transaction() as session:
        assert (await session.execute(text("select name from tenants"))).scalars().all() == ["kept"]


async def test_nobody_takes_over_in_the_midst_of_a_write(database: Database) -> None:
    assert await _acquire(database, "a") == 1
    async with Leadership(database, 1).transaction():
        taking = asyncio.create_task(_acquire(database, "a"))
        await asyncio.sleep(0.2)
        assert not taking.done()
    assert await taking == 2


class Counter:
    """A loop that counts its ticks, and fails at some."""

    name = "counter"
    topics = ("count",)
    interval_s = 60.0

    def __init__(self, *, fail: int = 0) -> None:
        self.epochs: list[int] = []
        self.ticked = asyncio.Event()
        self._fail = fail

    async def tick(self, leadership: Leadership) -> float | None:
        async with leadership.transaction():
            self.epochs.append(leadership.epoch)
        self.ticked.set()
        if len(self.epochs) <= self._fail:
            raise ValueError("once more")
        return None


async def test_loops_run_on_bells_under_the_lease(database: Database, bells: Bells) -> None:
    loop = Counter()
    leader = Leader(database, bells, "a", [loop], renew_s=0.1, expiry_s=2)
    leader.start()
    async with asyncio.timeout(5):
        await loop.ticked.wait()
        loop.ticked.clear()
        async with database.transaction() as session:
            ring(session, "count")
        await loop.ticked.wait()
    assert set(loop.epochs) == {1}
    await leader.stop()
    assert await _acquire(database, "b") == 2  # given back, not waited out


async def test_a_failed_tick_is_tried_again(database: Database, bells: Bells) -> None:
    loop = Counter(fail=2)
    leader = Leader(database, bells, "a", [loop], renew_s=0.1, expiry_s=2)
    leader.start()
    async with asyncio.timeout(10):
        while len(loop.epochs) < 3:
            loop.ticked.clear()
            await loop.ticked.wait()
    await leader.stop()


async def test_a_leader_that_was_replaced_stops_its_loops(database: Database, bells: Bells) -> None:
    loop = Counter()
    leader = Leader(database, bells, "a", [loop], renew_s=0.1, expiry_s=1)
    leader.start()
    async with asyncio.timeout(5):
        await loop.ticked.wait()
        async with database.transaction() as session:
            await session.execute(text("update leases set holder = 'b', epoch = 7, expires_at = now() + '1 hour'"))
        while leader.epoch is not None:  # noqa: ASYNC110 - what is watched is that nothing tells it
            await asyncio.sleep(0.02)
        ticks = len(loop.epochs)
        async with database.transaction() as session:
            ring(session, "count")
        await asyncio.sleep(0.3)
    assert len(loop.epochs) == ticks
    await leader.stop()
