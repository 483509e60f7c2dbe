"""A client's request as it is read off the connection: its line, its headers, and how its body is framed. No I/O.

Strict, because others may stand in front that read the same bytes: one length or chunks, never both, no second value
for what must be one, no folded headers, no bare line ends, nothing but a path as target. Knows nothing of routes.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qsl

from data_plane.router.http1 import DIGITS, Malformed

MOST_HEAD_BYTES = 32 << 10
MOST_HEADERS = 128
_LINE = re.compile(r"([A-Z]{1,20}) (/[!-~]*) HTTP/1\.([01])")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BARE_END = re.compile(rb"(?<!\r)\n|\r[^\n]")
_ONCE = frozenset(
    ("host", "authorization", "content-length", "transfer-encoding", "content-encoding", "content-type", "expect")
)
"""Where two are given, one reader may go by the first and another by the second."""


class HeadTooLarge(Malformed):
    """More than a head may be."""


class Client(Protocol):
    """The connection that a request came on, as what answers it sees it."""

    has_begun: bool
    """Whether something of this request's answer was sent."""

    @property
    def is_full(self) -> bool:
        """Whether the client has not taken what was sent, so that more must wait."""
        ...

    @property
    def has_body(self) -> bool:
        """Whether all of the request's body is here."""
        ...

    def send(self, data: bytes) -> None:
        """Part of an answer. Raises ConnectionResetError where the client has gone."""
        ...

    def send_interim(self, data: bytes) -> None:
        """A word before the answer, which is not its beginning."""
        ...

    async def room(self) -> None:
        """Wait until the client has taken enough. Raises ConnectionResetError where it has gone."""
        ...

    async def body(self, most_bytes: int) -> bytes:
        """The request's body. Raises BodyTooLarge, or Malformed where its framing is none."""
        ...

    def abort(self) -> None:
        """End the connection at once."""
        ...


class BodyTooLarge(Exception):
    """More of a body came than may."""


@dataclass(eq=False, slots=True)
class Request:
    """Header names are in lower case; one that came twice has both values, after each other with a comma. `path` is as
    it was sent, nothing decoded. `num_bytes` is the body's length, None where it comes in chunks."""

    client: Client
    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    num_bytes: int | None
    is_old: bool
    """HTTP/1.0, which knows no chunks."""
    keeps_alive: bool

    @property
    def query(self) -> dict[str, str]:
        """What stands behind the path's question mark, decoded; of what is there twice, the last."""
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    @classmethod
    def unreadable(cls, client: Client) -> "Request":
        """Stands for what was no request, so that its refusal looks as every other."""
        return cls(client, "", "", "", {}, 0, is_old=False, keeps_alive=False)


def check_beginning(raw: bytes) -> None:
    """Raises Malformed where these bytes can be no head's beginning, whatever follows: nobody has to wait for it."""
    if len(raw) > MOST_HEAD_BYTES:
        raise HeadTooLarge(f"its head is larger than {MOST_HEAD_BYTES} bytes")
    if _CONTROLS.search(raw):
        raise Malformed("its head holds a control character")
    if _BARE_END.search(raw):
        raise Malformed("a line of its head does not end as one must")


def read_head(client: Client, raw: bytes) -> Request:
    """The request whose head is `raw`, without the empty line at its end. Raises Malformed."""
    if _CONTROLS.search(raw):
        raise Malformed("its head holds a control character")
    if len(raw) > MOST_HEAD_BYTES:
        raise HeadTooLarge(f"its head is larger than {MOST_HEAD_BYTES} bytes")
    line, *lines = raw.decode("latin-1").split("\r\n")
    if len(lines) > MOST_HEADERS:
        raise HeadTooLarge(f"it has {len(lines)} headers, more than {MOST_HEADERS}")
    if raw.count(b"\n") != len(lines) or raw.count(b"\r") != len(lines):
        raise Malformed("a line of its head does not end as one must")
    first = _LINE.fullmatch(line)
    if first is None:
        raise Malformed("it does not begin with a method, a path and a version")
    headers = _read_headers(lines)
    method, target, minor = first.groups()
    is_old = minor == "0"
    if "host" not in headers and not is_old:
        raise Malformed("it has no Host header")
    path, _, query = target.partition("?")
    options = headers.get("connection", "").lower()
    keeps_alive = "keep-alive" in options if is_old else "close" not in options
    return Request(client, method, path, query, headers, _framing(headers, is_old), is_old, keeps_alive)


def _read_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        given, colon, value = line.partition(":")
        name = _lower(given)
        if name is None or not colon:
            raise Malformed(f"this is no header: {line[:80]!r}")
        value = value.strip(" \t")
        if name in headers:
            if name in _ONCE:
                raise Malformed(f"there is more than one {given} header")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


@functools.lru_cache(1024)
def _lower(name: str) -> str | None:
    return name.lower() if len(name) <= 256 and _NAME.fullmatch(name) else None


def _framing(headers: dict[str, str], is_old: bool) -> int | None:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise Malformed("it has both a Content-Length and a Transfer-Encoding")
        if coding.lower() != "chunked" or is_old:
            raise Malformed(f"its Transfer-Encoding is {coding[:40]!r}, where only chunks can be read")
        return None
    if length is None:
        return 0
    if not DIGITS.fullmatch(length):
        raise Malformed(f"its Content-Length is {length[:40]!r}")
    return int(length)
