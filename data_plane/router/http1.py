"""HTTP/1.1 as bytes, without I/O: heads to send, a body as it arrives, without its framing, and an answer of a runner.

Strict: a length or chunks, never both, no folded headers, no extensions, no trailers. What it cannot be sure of is
malformed, and the connection ends with it. Knows nothing of what a body holds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MOST_HEAD_BYTES = 64 << 10
_MOST_SIZE_LINE = 16
_HEX = b"0123456789abcdefABCDEF"
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n\0]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
DIGITS = re.compile(r"[0-9]{1,15}")
_SIZE, _LAST = -1, -2
"""Where a chunked body is: before a size line, before its end; else how much of a chunk is left, 0 before its CRLF."""


class Malformed(Exception):
    """These bytes are no message, or one that two readers could read differently."""


def head_bytes(lines: Sequence[str]) -> bytes:
    """The head of a request or of an answer, given its lines. ValueError for one with a line's end or a NUL in it: what
    it holds would be read as something else than it was meant for."""
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1 or "\0" in head:
        raise ValueError("A header's value holds the end of a line: nothing is sent with it.")
    return head.encode("utf-8", "surrogateescape") + b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Head:
    """Header names are in lower case; one that came twice has both values, after each other with a comma."""

    status: int
    headers: dict[str, str]
    keeps_alive: bool

    @property
    def content_type(self) -> str:
        """The media type alone, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class BodyReader:
    """A body without its framing: `num_bytes` of it, or where that is None, chunks. `complete` when it has ended;
    `rest` is then what came behind its end."""

    def __init__(self, num_bytes: int | None) -> None:
        self.rest = b""
        self.complete = num_bytes == 0
        self._chunked = num_bytes is None
        self._left = _SIZE if num_bytes is None else num_bytes

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in `data`. Raises Malformed."""
        if self._chunked and not self.complete:
            return self._unchunk(self.rest + data if self.rest else data)
        if len(data) <= self._left:
            self._left -= len(data)
            self.complete = self._left == 0
            return data
        piece, self.rest = data[: self._left], self.rest + data[self._left :]
        self._left, self.complete = 0, True
        return piece

    def _unchunk(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        at, size, left = 0, len(data), self._left
        while at < size:
            if left == _SIZE:
                end = data.find(b"\r\n", at, at + _MOST_SIZE_LINE)
                if end < 0:
                    if size - at >= _MOST_SIZE_LINE:
                        raise Malformed(f"no chunk size: {data[at : at + 40]!r}")
                    break
                left = _chunk_size(data[at:end]) or _LAST
                at = end + 2
                if 0 < left <= size - at - 2 and data[at + left : at + left + 2] == b"\r\n":
                    pieces.append(data[at : at + left])  # all of a chunk is here, as it nearly always is
                    at += left + 2
                    left = _SIZE
            elif left > 0:
                piece = data[at : at + left]
                pieces.append(piece)
                at += len(piece)
                left -= len(piece)
            else:
                if size - at < 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise Malformed(f"no end of a chunk: {data[at : at + 40]!r}")
                at += 2
                if left == _LAST:
                    self.complete, left = True, 0
                    break
                left = _SIZE
        self._left = left
        self.rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class AnswerReader:
    """`feed` it what the connection gives. `head` is None until it is there; `complete` when the body has ended."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.complete = False
        self._rest = b""
        self._body: BodyReader | None = None

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in `data`. Raises Malformed, also for bytes after the answer's end."""
        body = self._body
        if body is None:
            data = self._rest + data if self._rest else data
            while (body := self._body) is None:
                end = data.find(b"\r\n\r\n")
                if end < 0 or end > MOST_HEAD_BYTES:
                    if len(data) > MOST_HEAD_BYTES:
                        raise Malformed(f"a head of more than {MOST_HEAD_BYTES} bytes")
                    self._rest = data
                    return b""
                self._take_head(data[:end])
                data = data[end + 4 :]
        piece = body.feed(data)
        if body.complete:
            self.complete = True
            if body.rest:
                raise Malformed(f"{len(body.rest)} bytes too many")
        return piece

    def _take_head(self, raw: bytes) -> None:
        first, *lines = raw.split(b"\r\n")
        status = _STATUS.fullmatch(first)
        if status is None:
            raise Malformed(f"no status line: {first[:80]!r}")
        headers: dict[str, str] = {}
        for line in lines:
            header = _HEADER.fullmatch(line)
            if header is None:
                raise Malformed(f"no header: {line[:80]!r}")
            name, value = header[1].decode().lower(), header[2].decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        number = int(status[2])
        if number == 101:
            raise Malformed("it switched protocols")
        if number < 200:  # an interim answer: the real one follows
            return
        options = headers.get("connection", "").lower()
        self.head = Head(number, headers, status[1] == b"1" and "close" not in options)
        self._body = BodyReader(self._framing(number, headers))

    def _framing(self, status: int, headers: dict[str, str]) -> int | None:
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is not None:
            if length is not None or coding.lower() != "chunked":
                raise Malformed(f"a body by 'transfer-encoding: {coding[:40]}' and a length of {length}")
            return None
        if length is not None:
            if not DIGITS.fullmatch(length):
                raise Malformed(f"a length of {length[:40]!r}")
            return int(length)
        if status in (204, 304):
            return 0
        # a body that ends with its connection cannot be told from one that broke off
        raise Malformed("a body of unknown length")


def _chunk_size(line: bytes) -> int:
    # int() alone would also take signs, spaces, underscores and 0x
    if not 0 < len(line) <= 8 or line.translate(None, _HEX):
        raise Malformed(f"no chunk size: {line!r}")
    return int(line, 16)
