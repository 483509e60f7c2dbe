"""What is read of a request: never otherwise than another strict reader would, and the same however it arrives."""

import asyncio
import itertools
from typing import Any, cast
from unittest import mock

import pytest
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.gateway.answers import Answer, Whole
from data_plane.gateway.client_connection import MOST_AHEAD_BYTES, ClientConnection
from data_plane.gateway.client_request import (
    MOST_HEADERS,
    BodyTooLarge,
    HeadTooLarge,
    Request,
    check_beginning,
    read_head,
)
from data_plane.router.http1 import Malformed

NOBODY = cast(ClientConnection, None)

LINE = st.sampled_from(
    (
        *("GET / HTTP/1.1", "POST /v1/x?a=1 HTTP/1.1", "GET / HTTP/1.0", "GET  / HTTP/1.1", "get / HTTP/1.1"),
        *("GET http://x/ HTTP/1.1", "GET / HTTP/2.0", "GET /a b HTTP/1.1", "GET /", "GET /\x01 HTTP/1.1"),
    )
)
HEADER = st.sampled_from(
    (
        *("Host: x", "Content-Length: 3", "content-length: 3", "Content-Length: 03", "Content-Length: +3"),
        *("Content-Length: 3, 3", "Content-Length:", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked"),
        *("Transfer-Encoding: chunked, chunked", "Transfer-Encoding : chunked", "Transfer-Encoding: identity"),
        *(" folded: x", "X-A: b", "X-A:\tb\t", "X A: b", ": b", "X-A", "X-A: \x00", "X-A: b\x7f", "X-\xe4: b"),
        *("X-A: \xe4", "Connection: close", "Connection: keep-alive", "Authorization: Bearer a"),
        *("Expect: 100-continue", "X-A: b\nC: d"),
    )
)


async def by_another_reader(raw: bytes) -> Any:
    """The message as aiohttp's strict parser has it; None where it refuses."""
    parser = HttpRequestParser(mock.Mock(), asyncio.get_running_loop(), 2**16)
    try:
        messages, _, rest = parser.feed_data(raw + b"\r\n\r\n")
    except HttpProcessingError:
        return None
    return messages[0][0] if len(messages) == 1 and not rest else None


@settings(max_examples=600, deadline=None)
@given(line=LINE, lines=st.lists(HEADER, max_size=6))
def test_what_is_read_another_reader_reads_alike(line: str, lines: list[str]) -> None:
    raw = "\r\n".join([line, "Host: x", *lines] if "Host: x" not in lines else [line, *lines]).encode("latin-1")
    try:
        request = read_head(NOBODY, raw)
    except Malformed:
        return
    other = asyncio.run(by_another_reader(raw))
    assert other is not None, f"only one of two readers takes {raw!r}"
    assert (request.method, request.path) == (other.method, other.url.raw_path)
    assert request.keeps_alive != other.should_close
    assert (request.num_bytes is None) == other.chunked
    for name in ("authorization", "content-length", "transfer-encoding", "expect"):
        assert request.headers.get(name) == other.headers.get(name)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\nX-B: 2",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\rX-B: 2",
        b"GET * HTTP/1.1\r\nHost: x",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        read_head(NOBODY, raw)


def test_a_head_has_its_bounds() -> None:
    many = b"GET / HTTP/1.1\r\nHost: x" + b"\r\nX-A: b" * MOST_HEADERS
    for raw in (many, b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x"):
        with pytest.raises(HeadTooLarge):
            read_head(NOBODY, raw)
    with pytest.raises(HeadTooLarge):
        check_beginning(b"GET /" + b"a" * 40_000)


@pytest.mark.parametrize("raw", [b"\x16\x03\x01", b"GET / HTTP/1.1\nHost", b"GET / HTTP/1.1\rHost"])
def test_a_beginning_that_can_come_to_nothing_is_not_waited_for(raw: bytes) -> None:
    check_beginning(b"GET / HTTP/1.1\r\nHost: x\r")
    with pytest.raises(Malformed):
        check_beginning(raw)


async def answered(*pieces: bytes, most_bytes: int = 1 << 20, reads: bool = True) -> bytes:
    """What a connection sends for these bytes; each request is answered by its path and body."""

    async def handle(request: Request) -> Answer:
        try:
            body = await request.client.body(most_bytes) if reads else b""
        except (Malformed, BodyTooLarge) as fault:
            return Whole(413 if isinstance(fault, BodyTooLarge) else 400, b"", {})
        return Whole(200, f"{request.path} {body.decode()};".encode(), {})

    def refuse(_: Request, fault: Malformed) -> Answer:
        return Whole(400, str(fault).encode(), {"connection": "close"})

    connection = ClientConnection(handle, refuse, set())
    transport = mock.Mock(spec=asyncio.Transport)
    transport.get_extra_info.return_value = None
    transport.is_closing.return_value = False
    connection.connection_made(transport)
    for piece in pieces:
        connection.data_received(piece)
        for _ in range(10):
            await asyncio.sleep(0)
    sent = b"".join(call.args[0] for call in transport.write.call_args_list)
    if transport.close.called:
        sent += b"<closed>"
    connection.connection_lost(None)
    await asyncio.sleep(0)
    return sent


def bodies(sent: bytes) -> list[bytes]:
    return [part.split(b"\r\n\r\n")[-1] for part in sent.split(b";")]


TWO = (
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyou\r\n2\r\n!!\r\n0\r\n\r\n"
    b"GET /c HTTP/1.1\r\nHost: x\r\n\r\n"
)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(TWO)), max_size=6))
def test_requests_are_the_same_however_they_arrive(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(TWO)]
    pieces = [TWO[start:end] for start, end in itertools.pairwise(edges) if start < end]
    assert bodies(asyncio.run(answered(*pieces))) == [b"/a hello", b"/b you!!", b"/c ", b""]


async def test_a_body_that_nobody_read_is_never_taken_for_a_request() -> None:
    start = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\nGET /evil HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = await answered(start, reads=False)
    assert sent.count(b"200 OK") == 1 and b"connection: close" in sent and b"evil" not in sent
    assert not sent.endswith(b"<closed>"), "what is left of the body is let come first, or its sender is cut off"
    assert (await answered(start, b"x" * 60, b"GET /evil HTTP/1.1\r\n", reads=False)).endswith(b"<closed>")


async def test_a_body_has_its_bounds_however_it_is_framed() -> None:
    chunk = b"%x\r\n%b\r\n" % (1000, b"x" * 1000)
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await answered(head, *[chunk] * 4, most_bytes=3000)).startswith(b"HTTP/1.1 413")
    broken = await answered(head, chunk, b"zz\r\n")
    assert broken.startswith(b"HTTP/1.1 400") and b"connection: close" in broken


async def test_who_sends_ahead_has_to_wait() -> None:
    async def handle(_: Request) -> Answer:
        await asyncio.sleep(60)
        raise AssertionError

    connection = ClientConnection(handle, mock.Mock(), set())
    transport = mock.Mock(spec=asyncio.Transport)
    transport.get_extra_info.return_value = None
    connection.connection_made(transport)
    connection.data_received(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0)
    for _ in range(3):
        assert not transport.pause_reading.called
        connection.data_received(b"x" * (MOST_AHEAD_BYTES // 2))
    transport.pause_reading.assert_called_once_with()
    connection.connection_lost(None)
