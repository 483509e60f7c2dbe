"""How an answer is taken up by another replica: marks beside a stream's events, and the request that goes on from them.

A runner that is asked to (`RESUMABLE_HEADER`) writes behind each event an SSE `id:` line that says what the event
makes known: which choice, which tokens, whether it has ended. A gateway takes these lines out and keeps them; should
the runner be lost they are all that another one needs. Pure; knows nothing of HTTP or of the engine.
"""

import re
from typing import Literal

import msgspec

RESUMABLE_HEADER = "x-ebb-resumable"
"""In a request: the answer's `created` in Unix seconds, and a wish for marks. In an answer: there are marks."""
RESUME_PATH = "/internal/resume"

ENGINE_DEAD_CODE = "engine_dead"
"""A runner whose engine failed answers 503 with this code, and ends."""
DRAINING_CODE = "draining"
"""A runner that leaves answers 503 with this code: it did nothing with the request."""

EngineReason = Literal["stop", "length"]
Kind = Literal["chat", "completion"]

_MARK = re.compile(rb"\nid: ([^\n]*)")
_REASONS: dict[str, EngineReason] = {"s": "stop", "l": "length"}
MOVED = b"m"
"""The mark of a runner that leaves: nothing was wrong, and another shall go on."""
DIED = b"d"
"""The mark of a runner whose engine failed: it ends, and another may go on."""
USAGE = b"u"
"""The mark of the event with the usage, after which only `[DONE]` comes."""


class Said(msgspec.Struct):
    """What was sent of one choice. `reason` is how the engine ended it (None also where a stop text did)."""

    index: int
    tokens: list[int] = []
    is_open: bool = False
    """Whether what comes before the first token was sent (a role, an echoed prompt)."""
    reason: EngineReason | None = None
    is_ended: bool = False
    """Whether its finish reason was sent."""


class ResumeRequest(msgspec.Struct, frozen=True):
    """POST `RESUME_PATH`: the request as it was first sent, and what has been sent of its answer since."""

    kind: Kind
    request: msgspec.Raw
    said: list[Said]


def open_mark(index: int) -> bytes:
    """What comes before a choice's first token."""
    return b"%d o" % index


def token_mark(index: int, tokens: list[int], reason: EngineReason | None) -> bytes:
    """The tokens of a choice that became known with an event, and how the engine ended it with the last of them."""
    return f"{index} t{reason[0] if reason else ''} {','.join(map(str, tokens))}".encode()


def end_mark(index: int) -> bytes:
    """A choice's finish reason."""
    return b"%d f" % index


def marked(event: bytes, *marks: bytes) -> bytes:
    """An event (its lines and the empty one) with its marks."""
    return event[:-1] + b"id: " + b"\nid: ".join(marks) + b"\n\n" if marks else event


def unmark(events: bytes) -> tuple[bytes, list[bytes]]:
    """Whole events without their marks, and the marks. In an event's data there is no line end, so none looks so."""
    parts = _MARK.split(events)
    return (events, []) if len(parts) == 1 else (b"".join(parts[::2]), parts[1::2])


def said_by(marks: list[bytes]) -> list[Said]:
    """What the marks tell, by choice. ValueError for one that no runner writes."""
    found: dict[int, Said] = {}
    for mark in marks:
        if mark in (MOVED, DIED, USAGE):
            continue
        number, kind, *listed = mark.decode().split(" ")
        index = int(number)
        said = found.setdefault(index, Said(index))
        if kind == "o":
            said.is_open = True
        elif kind == "f":
            said.is_ended = True
        elif kind[0] == "t":
            said.is_open = True
            said.reason = _REASONS.get(kind[1:])
            if listed[0]:
                said.tokens += map(int, listed[0].split(","))
        else:
            raise ValueError(f"A runner marked an event with {mark[:40]!r}, which is no mark.")
    return list(found.values())


_DECODER = msgspec.json.Decoder(ResumeRequest)


def parse_resume(raw: bytes) -> ResumeRequest:
    """The request in `raw`. Raises msgspec.DecodeError."""
    return _DECODER.decode(raw)
