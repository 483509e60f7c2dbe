"""What gateways tell of requests that have ended: who asked which endpoint when, what it used and how it went. No I/O.

Nothing of what was said, and no request's name: enough to count by, and to replay.
"""

from bisect import bisect_left
from typing import Literal, get_args

import msgspec

Ending = Literal["ok", "client_error", "error", "interrupted", "cancelled"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)
"""How a request may end, by the number that stands for it in a row."""
BOUNDS_MS = tuple(2.0 ** (quarter / 4) for quarter in range(80))
"""Upper bounds of the classes that times to the first token are counted by: a fifth apart, up to 15 minutes."""


def time_class(ms: float) -> int:
    """The class of a time; the last one is for all beyond the bounds."""
    return bisect_left(BOUNDS_MS, ms)


class UsageRow(msgspec.Struct, array_like=True):
    """One request, or `count` alike ones that came within a second of `at_ms` (Unix milliseconds of the arrival). What
    follows `count` are sums. `first_ms`: from the arrival to the first token, of a stream; -1 where there is none."""

    at_ms: int
    ending: int
    is_cold: bool
    """Whether it met an endpoint without a replica, and had to wait for one to start."""
    count: int
    first_ms: int
    ms: int
    """From the arrival to the answer's end."""
    prompt: int
    cached: int
    """Of the prompt, what the replica had in its cache."""
    completion: int


class EndpointUsage(msgspec.Struct, frozen=True):
    """What requests with one key came to on one endpoint."""

    endpoint_id: str
    key_id: str
    rows: list[UsageRow]


class UsageBatch(msgspec.Struct, frozen=True):
    """Requests that ended since the batch before. It is sent until it has arrived, always the same: of one `boot` of a
    gateway, a batch whose `number` is not beyond the last that was stored is stored already."""

    boot: str
    number: int
    endpoints: list[EndpointUsage]
