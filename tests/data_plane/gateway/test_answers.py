"""Answers as clients of each kind get them, byte by byte, from a real socket."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from data_plane.gateway.answers import Answer, Stream, Whole
from data_plane.gateway.client_connection import ClientConnection
from data_plane.gateway.client_request import Request
from data_plane.router.http1 import Malformed

Make = Callable[[Request], Answer]


@asynccontextmanager
async def serving(make: Make, parts: tuple[bytes, ...] = ()) -> AsyncGenerator[int]:
    """A server whose every answer is made by `make`, with `parts` written to it; its port."""

    async def handle(request: Request) -> Answer:
        answer = make(request)
        if isinstance(answer, Stream):
            for part in parts:
                await answer.write(part)
        return answer

    def refuse(_: Request, fault: Malformed) -> Answer:
        return Whole(400, str(fault).encode(), {"connection": "close"})

    known: set[ClientConnection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ClientConnection(handle, refuse, known), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for connection in list(known):
        connection.abort()


async def asked(port: int, *requests: bytes) -> bytes:
    """All that comes for these requests on one connection, until it ends or nothing more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests))
    got = b""
    try:
        async with asyncio.timeout(0.5):
            while chunk := await reader.read(65536):
                got += chunk
            got += b"<closed>"
    except TimeoutError:
        pass  # the connection is kept
    writer.close()
    return got


def whole(_: Request | None = None, **headers: str) -> Whole:
    return Whole(200, b"{}", {"content-type": "application/json", **headers})


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
OLD_KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"


async def test_a_whole_answer_and_the_next_on_one_connection() -> None:
    async with serving(whole) as port:
        got = await asked(port, GET, GET)
    first, second, rest = got.split(b"{}")
    assert not rest and first.split(b"\r\n")[0] == b"HTTP/1.1 200 OK"
    lines = first.lower().split(b"\r\n")
    assert b"content-length: 2" in lines and b"content-type: application/json" in lines
    assert sum(line.startswith(b"date: ") for line in lines) == 1
    assert not any(line.startswith((b"connection:", b"transfer-encoding:", b"server:")) for line in lines)
    assert second.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "says"),
    [(OLD, b"connection: close"), (GET.replace(b"Host: x", b"Host: x\r\nConnection: close"), b"connection: close")],
)
async def test_a_connection_that_is_not_to_be_kept_is_closed(request_bytes: bytes, says: bytes) -> None:
    async with serving(whole) as port:
        got = await asked(port, request_bytes)
    assert says in got and got.endswith(b"{}<closed>")


async def test_an_old_client_that_keeps_its_connection_is_told_so() -> None:
    async with serving(whole) as port:
        got = await asked(port, OLD_KEPT)
    assert b"connection: keep-alive" in got and got.endswith(b"{}")


async def test_an_answer_may_end_its_connection() -> None:
    async with serving(lambda _: whole(connection="close")) as port:
        got = await asked(port, GET)
    assert got.lower().count(b"connection: close") == 1 and got.endswith(b"{}<closed>")


@pytest.mark.parametrize(("status", "method"), [(200, b"HEAD"), (204, b"GET"), (304, b"GET")])
async def test_no_body_where_none_may_be(status: int, method: bytes) -> None:
    async with serving(lambda _: Whole(status, b"{}", {})) as port:
        got = await asked(port, GET.replace(b"GET", method))
    assert got.endswith(b"\r\n\r\n")
    assert (b"content-length: 2" in got) == (status == 200)


async def test_a_stream_is_chunked_and_its_head_comes_with_the_first_part() -> None:
    async with serving(
        lambda request: Stream(request, 200, {"x-a": "1"}), (b"data: 1\n\n", b"", b"data: 2\n\n")
    ) as port:
        got = await asked(port, GET)
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"x-a: 1" in head and b"transfer-encoding: chunked" in head and b"content-length" not in head
    assert body == b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"


async def test_a_stream_without_parts_is_an_empty_answer() -> None:
    async with serving(lambda request: Stream(request, 200, {})) as port:
        got = await asked(port, GET)
    assert got.endswith(b"\r\n\r\n0\r\n\r\n")


async def test_an_old_client_gets_a_stream_until_its_connection_closes() -> None:
    async with serving(lambda request: Stream(request, 200, {}), (b"one", b"two")) as port:
        got = await asked(port, OLD_KEPT)
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"chunked" not in head and b"connection: close" in head and body == b"onetwo<closed>"


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\0b"])
async def test_a_header_never_holds_the_end_of_a_line(value: str) -> None:
    makes: list[Make] = [lambda _: whole(x=value), lambda request: Stream(request, 200, {"x": value})]
    for make in makes:
        async with serving(make) as port:
            got = await asked(port, GET)
        assert got == b"<closed>"
