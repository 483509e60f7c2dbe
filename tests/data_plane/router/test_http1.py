"""Answers as bytes: the same whatever the reads were cut into, and refused where two readers could disagree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.router.http1 import MOST_HEAD_BYTES, AnswerReader, Malformed

BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
CUTS = st.lists(st.integers(1, 25), min_size=1, max_size=50)


def pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream cut into reads of these sizes, over and over."""
    cut: list[bytes] = []
    at = 0
    while at < len(stream):
        size = sizes[len(cut) % len(sizes)]
        cut.append(stream[at : at + size])
        at += size
    return cut


def chunked(body: list[bytes]) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a:2\r\n\r\n" + framed + b"0\r\n\r\n"


def measured(body: list[bytes]) -> bytes:
    whole = b"".join(body)
    head = b"HTTP/1.1 404 Not Found\r\nContent-Type: Application/JSON; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
    return head % len(whole) + whole


@given(BODIES, CUTS, st.booleans(), st.booleans())
def test_an_answer_is_the_same_however_it_arrives(body: list[bytes], sizes: list[int], by: bool, interim: bool) -> None:
    stream = (b"HTTP/1.1 100 Continue\r\n\r\n" if interim else b"") + (chunked(body) if by else measured(body))
    reader, got = AnswerReader(), b""
    for piece in pieces(stream, sizes):
        assert not reader.complete, "it was complete before its last byte"
        got += reader.feed(piece)
    assert got == b"".join(body)
    assert reader.complete and reader.head is not None and reader.head.keeps_alive
    if by:
        assert (reader.head.status, reader.head.headers["x-a"]) == (200, "1, 2")
    else:
        assert (reader.head.status, reader.head.content_type) == (404, "application/json")


@given(st.binary(max_size=80), st.binary(max_size=80), CUTS)
def test_junk_is_refused_or_waited_for_and_nothing_else(head: bytes, body: bytes, sizes: list[int]) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\n"):
        reader = AnswerReader()
        try:
            for piece in pieces(start + head + b"\r\n" + body, sizes):
                assert len(reader.feed(piece)) <= len(piece) + 80
        except Malformed as fault:
            assert str(fault)


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED = {
    "no http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "another version": b"HTTP/2 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "length and chunked": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a signed length": HEAD + b"Content-Length: +5\r\n\r\n",
    "a huge length": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "another coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "no framing": HEAD + b"Content-Type: a/b\r\n\r\n",
    "a folded header": HEAD + b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : 0\r\n\r\n",
    "a bare line feed": HEAD + b"X-A: b\nX-B: c\r\nContent-Length: 0\r\n\r\n",
    "a nul": HEAD + b"X-A: b\0\r\nContent-Length: 0\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "an endless head": HEAD + b"X-A: " + b"a" * (MOST_HEAD_BYTES + 10),
    "bytes after a length": HEAD + b"Content-Length: 1\r\n\r\nab",
    "bytes after the last chunk": CHUNKED + b"0\r\n\r\nHTTP/1.1 200 OK\r\n",
    "a size with a sign": CHUNKED + b"+1\r\na\r\n",
    "a size with 0x": CHUNKED + b"0x1\r\na\r\n",
    "a size with an underscore": CHUNKED + b"1_0\r\n",
    "an empty size": CHUNKED + b"\r\n",
    "an extension": CHUNKED + b"1;a=b\r\na\r\n",
    "a huge size": CHUNKED + b"fffffffff\r\n",
    "a size without end": CHUNKED + b"1" * 40,
    "a chunk that is longer than it says": CHUNKED + b"1\r\nab\r\n",
    "a trailer": CHUNKED + b"0\r\nX-A: b\r\n\r\n",
}


@pytest.mark.parametrize("case", list(REFUSED))
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_could_be_read_in_two_ways_is_refused(case: str, size: int) -> None:
    reader = AnswerReader()
    with pytest.raises(Malformed):
        for piece in pieces(REFUSED[case], [size]):
            reader.feed(piece)


@pytest.mark.parametrize(
    ("stream", "alive"),
    [
        (HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (HEAD + b"Content-Length: 0\r\n\r\n", True),
    ],
)
def test_whether_a_connection_may_be_used_again(stream: bytes, alive: bool) -> None:
    reader = AnswerReader()
    assert reader.feed(stream) == b""
    assert reader.complete and reader.head is not None and reader.head.keeps_alive == alive
    with pytest.raises(Malformed):
        reader.feed(b"x")
