"""F25: a leader that was stopped (SIGSTOP) past its lease and goes on writes nothing that counts, wherever it stood."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from sqlalchemy import text

from control_plane.db.bells import Bells
from control_plane.db.loop import Leader, Leadership
from control_plane.db.session import Database

EXPIRY_S = 0.8
WRITER = """
import asyncio, sys
from control_plane.db.bells import Bells
from control_plane.db.loop import Leader
from control_plane.db.session import Database
from tests.control_plane.db.test_paused_leader import Writer
url, expiry_s, linger_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
async def main():
    leader = Leader(Database(url), Bells(url), "old", [Writer("old", linger_s)], renew_s=0.1, expiry_s=expiry_s)
    leader.start()
    await asyncio.sleep(60)
asyncio.run(main())
"""
Start = Callable[[float], "subprocess.Popen[bytes]"]


class Writer:
    """Writes a row with its epoch, again and again; `linger_s`: so long each transaction stays open after it."""

    name = "writer"
    topics: tuple[str, ...] = ()
    interval_s = 60.0

    def __init__(self, holder: str, linger_s: float = 0.0) -> None:
        self._holder = holder
        self._linger_s = linger_s

    async def tick(self, leadership: Leadership) -> float | None:
        async with leadership.transaction() as session:
            values = {"holder": self._holder, "epoch": leadership.epoch}
            await session.execute(text("insert into written (holder, epoch) values (:holder, :epoch)"), values)
            await asyncio.sleep(self._linger_s)
        return 0.0


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Generator[Start]:
    """Starts the old leader; it is gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(linger_s: float) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", WRITER, database_url, str(EXPIRY_S), str(linger_s)]
        with (tmp_path / "old.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[3]))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


async def _written(database: Database) -> list[tuple[str, int]]:
    """Holder and epoch of all that was written, in its order."""
    async with database.transaction() as session:
        query = text("select holder, epoch from written order by id")
        return [(str(holder), int(epoch)) for holder, epoch in await session.execute(query)]


async def _until(database: Database, what: str) -> None:
    async with asyncio.timeout(30):
        while True:
            async with database.transaction() as session:  # a view of activity stays the same within one
                if (await session.execute(text(what))).scalar_one():
                    return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("linger_s", [0.0, 0.3], ids=["between_writes", "in_a_transaction"])
async def test_f25_a_paused_leader_writes_nothing_after_another_began(
    database: Database, bells: Bells, start: Start, linger_s: float
) -> None:
    async with database.transaction() as session:
        await session.execute(text("create table written (id bigserial primary key, holder text, epoch bigint)"))
    process = start(linger_s)
    await _until(database, "select count(*) > 1 from written")
    if linger_s:
        # its transaction is open, and with it the lock that keeps others from taking over
        idle = "state = 'idle in transaction' and query like 'insert into written%'"
        await _until(database, f"select count(*) > 0 from pg_stat_activity where {idle}")
    process.send_signal(signal.SIGSTOP)
    leader = Leader(database, bells, "new", [Writer("new")], renew_s=0.1, expiry_s=60)
    leader.start()
    try:
        await _until(database, "select count(*) > 2 from written where holder = 'new'")
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(1.0)
        written = await _written(database)
    finally:
        await leader.stop()
    first = next(index for index, (holder, _) in enumerate(written) if holder == "new")
    stale = [row for row in written[first:] if row[0] == "old"]
    print(f"F25: {first} writes of the old leader, {len(written) - first} of the new one, {len(stale)} stale applied")
    epochs = [epoch for _, epoch in written]
    assert stale == [] and epochs == sorted(epochs)


async def test_f25_an_epoch_that_was_handed_out_twice_is_one_holders(database: Database) -> None:
    """A database that forgot an epoch gives it to another: only the one whose name stands beside it may write."""
    from control_plane.db import lease
    from control_plane.errors import StaleEpoch

    async with database.transaction() as session:
        assert await lease.acquire(session, "old", above=4) == 5
        await session.execute(text("update leases set holder = 'new' where name = 'leader'"))
    with pytest.raises(StaleEpoch):
        async with Leadership(database, 5, holder="old").transaction():
            pass
    async with Leadership(database, 5, holder="new").transaction():
        pass
