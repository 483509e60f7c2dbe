"""What requests used, kept from their end until the control plane has it. It costs a request about a microsecond, and
bounded memory whatever happens: the first requests of a while are kept one by one, the others of that while in sums.

Knows nothing of when it is sent or how; time is an argument.
"""

import random
from bisect import bisect_left
from collections.abc import Callable

from data_plane.gateway.exchange import Exchange
from data_plane.wire.usage import BOUNDS_MS, ENDINGS, EndpointUsage, UsageBatch, UsageRow

EVERY_S = 4.0
"""What is kept is sent once the first of it is so old: with the heartbeat, where there is no other report."""
MOST_SINGLE = 50
"""Requests of one key on one endpoint that a batch has one by one; the others of a second that went alike are a sum."""
MOST_ROWS = 20_000
"""Rows that wait for the control plane: 2 MB of JSON, of the 4 that it takes."""

_NUMBERS = {word: number for number, word in enumerate(ENDINGS)}
_Alike = tuple[int, int, bool, int]


class _Page:
    """Of one key on one endpoint."""

    __slots__ = ("rows", "sums")

    def __init__(self) -> None:
        self.rows: list[UsageRow] = []
        self.sums: dict[_Alike, UsageRow] = {}


class UsageBook:
    """`on_drop` hears of each request that is not kept, because the control plane took nothing for too long."""

    def __init__(self, on_drop: Callable[[], None], *, most_rows: int = MOST_ROWS) -> None:
        self._on_drop = on_drop
        self._most_rows = most_rows
        self._pages: dict[tuple[str, str], _Page] = {}
        self._num_rows = 0
        self._since = 0.0
        self._unsent: UsageBatch | None = None
        self._boot = f"{random.getrandbits(64):016x}"
        self._number = 0

    def note(self, exchange: Exchange, endpoint_id: str, at: float, seconds: float) -> None:
        """A request has ended that arrived at Unix time `at`. One without a key or a meter was refused at the door."""
        key, meter = exchange.key, exchange.meter
        if key is None:
            return
        page = self._pages.get((endpoint_id, key.id))
        if page is None:
            page = self._pages[endpoint_id, key.id] = _Page()
        prompt, cached, completion = (0, 0, 0) if meter is None else meter.counts()
        # an answer that is no stream has no first token that a client could see
        first_s = exchange.first_byte_s if exchange.response is not None else None
        first_ms = -1 if first_s is None else int(first_s * 1000)
        at_ms, ms = int(at * 1000), int(seconds * 1000)
        ending, is_cold = _NUMBERS.get(exchange.outcome, 2), exchange.is_cold
        alike: _Alike | None = None
        if len(page.rows) >= MOST_SINGLE or self._num_rows >= self._most_rows // 2:
            alike = (at_ms // 1000, ending, is_cold, -1 if first_s is None else bisect_left(BOUNDS_MS, first_ms))
            known = page.sums.get(alike)
            if known is not None:
                known.count += 1
                known.first_ms += first_ms if first_s is not None else 0
                known.ms += ms
                known.prompt += prompt
                known.cached += cached
                known.completion += completion
                return
        if self._num_rows >= self._most_rows:
            return self._on_drop()
        if not self._num_rows:
            self._since = at + seconds
        self._num_rows += 1
        row = UsageRow(at_ms, ending, is_cold, 1, first_ms, ms, prompt, cached, completion)
        if alike is None:
            page.rows.append(row)
        else:
            page.sums[alike] = row

    def due(self, now: float, *, all: bool = False) -> UsageBatch | None:
        """What is to be sent at Unix time `now`: the batch that did not arrive, else what was kept for long enough,
        or `all` of it. Call `arrived` once it has."""
        if self._unsent is None and self._num_rows and (all or not 0 <= now - self._since < EVERY_S):
            pages, self._pages = self._pages, {}
            self._num_rows = 0
            self._number += 1
            told = [EndpointUsage(*ids, [*page.rows, *page.sums.values()]) for ids, page in pages.items()]
            self._unsent = UsageBatch(self._boot, self._number, [each for each in told if each.rows])
        return self._unsent

    def arrived(self, batch: UsageBatch) -> None:
        """The control plane has it."""
        if self._unsent is batch:
            self._unsent = None
