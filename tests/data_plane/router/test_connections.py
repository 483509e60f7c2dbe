"""Connections to runners over real sockets: kept, given up, held back, and never mixed up."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from data_plane.router import connections
from data_plane.router.connections import MOST_BUFFERED_BYTES, Address, Connection, ConnectionLost, Pool

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def runner(handler: Handler, silence_s: float = 5.0) -> AsyncGenerator[tuple[Pool, Address]]:
    """A pool, and the address of a server that gives each connection to `handler`."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    pool = Pool(connect_s=1.0, silence_s=silence_s)
    try:
        yield pool, pool.address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    finally:
        pool.close()
        server.close()


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readline():
        writer.write(WHOLE)


async def whole(connection: Connection) -> bytes:
    body = b""
    while piece := await connection.read():
        body += piece
    return body


async def test_a_complete_answer_keeps_its_connection_for_the_next_request() -> None:
    async with runner(answer_all) as (pool, address):
        first = await pool.take(address)
        for _ in range(3):
            first.send(b"x\n")
            assert (await first.head()).status == 200
            assert await whole(first) == b"ok"
            pool.give_back(first)
            assert await pool.take(address) is first
        second = await pool.take(address)
        assert second is not first
        pool.give_back(first)
        pool.give_back(second)


async def test_an_answer_that_is_not_complete_takes_its_connection_with_it() -> None:
    gone = asyncio.Event()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(CHUNKED + b"2\r\nok\r\n")
        with suppress(ConnectionError):
            await reader.read()
        gone.set()
        writer.close()

    async with runner(half) as (pool, address), asyncio.timeout(5):
        connection = await pool.take(address)
        connection.send(b"x\n")
        assert await connection.read() == b"ok"
        pool.give_back(connection)
        await gone.wait()
        assert not connection.is_open


@pytest.mark.parametrize("rest", [b"", b"2\r\nok\r\n", b"2\r\no", b"ZZ\r\n"])
async def test_a_body_that_breaks_off_is_lost_after_what_came(rest: bytes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(CHUNKED + rest)
        writer.close()

    async with runner(broken) as (pool, address), asyncio.timeout(5):
        connection = await pool.take(address)
        connection.send(b"x\n")
        with pytest.raises(ConnectionLost, match=r"broke|no answer"):
            await whole(connection)
        assert not connection.reusable


async def test_what_nobody_asked_for_ends_an_idle_connection() -> None:
    async def pushy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(WHOLE)
        await asyncio.sleep(0.05)
        writer.write(WHOLE)
        await writer.drain()

    async with runner(pushy) as (pool, address), asyncio.timeout(5):
        connection = await pool.take(address)
        connection.send(b"x\n")
        assert await whole(connection) == b"ok"
        pool.give_back(connection)
        while connection.is_open:  # noqa: ASYNC110 - it tells nobody that it closed
            await asyncio.sleep(0.01)
        assert await pool.take(address) is not connection


async def test_silence_is_a_loss_however_many_requests_came_before() -> None:
    async def tired(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readline()
            writer.write(WHOLE)
        await reader.read()
        writer.close()

    async with runner(tired, silence_s=0.2) as (pool, address), asyncio.timeout(5):
        connection = await pool.take(address)
        for _ in range(2):
            connection.send(b"x\n")
            assert await whole(connection) == b"ok"
            pool.give_back(connection)
            await asyncio.sleep(0.1)
            assert await pool.take(address) is connection
        connection.send(b"x\n")
        with pytest.raises(ConnectionLost, match="nothing came"):
            await connection.head()


async def test_a_reader_that_does_not_read_holds_the_runner_back() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (24 << 20))
        for _ in range(24):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20

    async with runner(flood, silence_s=0.3) as (pool, address), asyncio.timeout(20):
        connection = await pool.take(address)
        connection.send(b"x\n")
        await connection.head()
        await asyncio.sleep(0.6)
        assert sent < 20 << 20, "more than the sockets' buffers was taken in"
        taken = len(await connection.read())
        assert taken < MOST_BUFFERED_BYTES + (1 << 20)
        while piece := await connection.read():
            taken += len(piece)
        assert taken == 24 << 20, "and being held back is not being silent"


async def test_a_stale_or_closed_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(WHOLE)
        await writer.drain()
        if first.is_set():
            await reader.read()
        first.set()
        writer.close()

    first = asyncio.Event()
    async with runner(once) as (pool, address), asyncio.timeout(5):
        for idle_s in (connections.IDLE_S, 0.0):
            monkeypatch.setattr(connections, "IDLE_S", idle_s)
            connection = await pool.take(address)
            connection.send(b"x\n")
            assert await whole(connection) == b"ok"
            pool.give_back(connection)
            await asyncio.sleep(0.05)
            assert await pool.take(address) is not connection


async def test_the_end_of_a_body_is_not_waited_for_but_its_connection_is_kept() -> None:
    async def slow_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(CHUNKED + b"2\r\nok\r\n")
            await asyncio.sleep(0.05)
            writer.write(b"0\r\n\r\n")

    async with runner(slow_end) as (pool, address), asyncio.timeout(5):
        connection = await pool.take(address)
        for most_s, kept in ((1.0, True), (0.01, False)):
            connection.send(b"x\n")
            assert await connection.read() == b"ok"
            connection.linger(pool, most_s)
            await asyncio.sleep(0.15)
            assert connection.is_open == kept
            assert (await pool.take(address) is connection) == kept


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://x", "http://"])
def test_what_is_no_url_is_said(url: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        Address.parse(url)


def test_a_url_is_taken_apart() -> None:
    assert Address.parse("http://[::1]:81/a/") == Address("::1", 81, False, "[::1]:81", "/a")
    assert Address.parse("https://h") == Address("h", 443, True, "h", "")
