"""Bells ring after the commit and only then; none is lost between two waits or over a lost connection."""

import asyncio
import time

import psycopg
import pytest

from control_plane.db.bells import LAZY_S, Bells, ring
from control_plane.db.session import Database


async def test_rings_after_the_commit_and_not_before(database: Database, bells: Bells) -> None:
    with bells.listen("routes") as listener:
        async with database.transaction() as session:
            ring(session, "routes", "routes", "other")
            assert not await listener.wait(0.2)
        assert await listener.wait(5)
        assert not await listener.wait(0.1)


async def test_a_rollback_rings_nothing(database: Database, bells: Bells) -> None:
    with bells.listen("routes") as listener:
        with pytest.raises(RuntimeError):
            async with database.transaction() as session:
                ring(session, "routes")
                raise RuntimeError
        assert not await listener.wait(0.2)


async def test_a_ring_between_two_waits_is_heard(database: Database, bells: Bells) -> None:
    with bells.listen("a", "b") as listener:
        async with database.transaction() as session:
            ring(session, "b")
        await asyncio.sleep(0.3)
        started = time.monotonic()
        assert await listener.wait(5)
        assert time.monotonic() - started < 1


async def test_every_listener_hears_and_other_topics_do_not(database: Database, bells: Bells) -> None:
    with bells.listen("node:1") as one, bells.listen("node:1") as two, bells.listen("node:2") as other:
        async with database.transaction() as session:
            ring(session, "node:1")
        assert await one.wait(5) and await two.wait(5)
        assert not await other.wait(0.1)


async def test_a_lost_connection_is_made_again_and_wakes_everyone(
    database: Database, bells: Bells, database_url: str
) -> None:
    with bells.listen("x") as listener:
        with psycopg.connect(database_url, autocommit=True) as connection:
            killed = connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'ebb-bells' "
                "and datname = current_database()"
            ).fetchall()
        assert killed == [(True,)]
        assert await listener.wait(10)
        async with asyncio.timeout(10):
            heard = False
            while not heard:
                async with database.transaction() as session:
                    ring(session, "x")
                heard = await listener.wait(0.5)


async def test_stopping_wakes_those_who_wait(database_url: str) -> None:
    bells = Bells(database_url)
    await bells.start()
    with bells.listen("x") as listener:
        waiting = asyncio.create_task(listener.wait(30))
        await asyncio.sleep(0.05)
        await bells.stop()
        assert await asyncio.wait_for(waiting, 2) and listener.closing
        assert await listener.wait(30)


async def test_who_waits_where_it_was_rung_hears_it_at_once_and_once(database: Database, bells: Bells) -> None:
    here = Database(database.url, rung=bells.rung_here, origin=bells.origin)
    try:
        with bells.listen("routes") as listener:
            async with here.transaction() as session:
                ring(session, "routes")
            assert listener.take(), "before the server can have said so"
            assert not await listener.wait(0.3), "what the server says of it is no news"
            async with database.transaction() as session:
                ring(session, "routes")
            assert await listener.wait(5), "that of others is"
    finally:
        await here.close()


async def test_what_is_in_no_hurry_is_heard_later_and_once(bells: Bells) -> None:
    with bells.listen("progress", "routes") as listener:
        bells.rung("progress")
        bells.rung("progress")
        assert not listener.take()
        bells.rung("routes")
        assert listener.take(), "the others are not kept waiting by it"
        assert await listener.wait(5)
        assert not await listener.wait(2 * LAZY_S)


async def test_a_savepoint_that_is_given_up_takes_no_bell_along(database: Database, bells: Bells) -> None:
    with bells.listen("routes") as listener:
        async with database.transaction() as session:
            ring(session, "routes")
            with pytest.raises(RuntimeError):
                async with session.begin_nested():
                    raise RuntimeError
            async with session.begin_nested():
                pass
            assert not await listener.wait(0.2)
        assert await listener.wait(5)
