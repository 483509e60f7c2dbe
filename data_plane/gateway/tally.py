"""What one endpoint's requests at this gateway come to, in counters that only grow: time in hand, tokens of prompts and
of answers; and how long the last answers took. Knows nothing of reports; time is the loop's, and an argument.
"""

import math
from collections import deque
from typing import Protocol

from data_plane.gateway.exchange import Exchange
from data_plane.gateway.meter import Meter
from data_plane.wire.routes import EndpointDemand, Latency, Totals

LATENCY_S = 60.0
MOST_ANSWERS = 512
"""Of the last answers: enough for a 95th percentile, and bounded."""


class Tally:
    """Of one endpoint."""

    def __init__(self, now: float) -> None:
        self.ended_at: float | None = None
        """When its last work ended."""
        self._open: set[Work] = set()
        self._busy_s = self._prefill = self._decode = 0.0
        self._at = now
        self._answers: deque[tuple[float, float | None, float | None]] = deque(maxlen=MOST_ANSWERS)

    @property
    def in_hand(self) -> int:
        """Requests here now, held or running."""
        return len(self._open)

    def begin(self, work: "Work", now: float) -> None:
        """One more request in hand."""
        self._account(now)
        self._open.add(work)

    def end(self, work: "Work", now: float) -> None:
        """One less; what it came to is kept."""
        self._account(now)
        self._read(work)
        self._open.remove(work)
        if not self._open:
            self.ended_at = now
        if work.exchange is not None and work.exchange.response is not None and work.exchange.outcome == "ok":
            self._answers.append((now, *_latency(work, now)))

    def demand(self, endpoint_id: str, waiting: int, now: float) -> EndpointDemand:
        """All that is told of it."""
        self._account(now)
        for work in self._open:
            self._read(work)
        idle_for_s = 0.0 if self._open else None if self.ended_at is None else now - self.ended_at
        return EndpointDemand(
            endpoint_id,
            running=len(self._open) - waiting,
            waiting=waiting,
            idle_for_s=idle_for_s,
            kv_tokens=int(sum(work.prompt + work.decoded for work in self._open)),
            totals=Totals(round(self._busy_s, 3), self._prefill, self._decode),
            latency=self._latency(now),
        )

    def _account(self, now: float) -> None:
        self._busy_s += len(self._open) * max(0.0, now - self._at)
        self._at = now

    def _read(self, work: "Work") -> None:
        """Count what came of it since it was last read. A prompt counts once it has a place: before that it waits."""
        if not work.prompt and work.exchange is not None and work.exchange.lease is not None:
            lease = work.exchange.lease
            work.prompt = max(1, lease.prompt_tokens)
            self._prefill += max(1, lease.prompt_tokens - lease.matched_tokens)
        if work.meter is not None:
            # told at the end, guessed from bytes before: what was counted is not taken back
            more = max(0, work.meter.completed - work.decoded)
            work.decoded += more
            self._decode += more

    def _latency(self, now: float) -> Latency | None:
        while self._answers and self._answers[0][0] < now - LATENCY_S:
            self._answers.popleft()
        if not self._answers:
            return None
        firsts = [first for _, first, _ in self._answers if first is not None]
        gaps = [gap for _, _, gap in self._answers if gap is not None]
        return Latency(len(self._answers), LATENCY_S, _p95_ms(firsts), _p95_ms(gaps))


class Books(Protocol):
    """Whoever keeps the tallies."""

    def begin(self, work: "Work") -> None:
        """A request's work begins."""
        ...

    def end(self, work: "Work") -> None:
        """It ended."""
        ...


class Work:
    """One request's part of the tally. A context manager of its own: contextlib's costs 4 us a request, this one 1."""

    __slots__ = ("_books", "decoded", "endpoint_id", "exchange", "meter", "prompt")

    def __init__(self, books: Books, endpoint_id: str, exchange: Exchange | None, meter: Meter | None) -> None:
        self._books = books
        self.endpoint_id = endpoint_id
        self.exchange = exchange
        self.meter = meter
        # tokens of it that are counted so far
        self.prompt = self.decoded = 0

    def __enter__(self) -> None:
        self._books.begin(self)

    def __exit__(self, *_: object) -> None:
        self._books.end(self)


def _latency(work: Work, now: float) -> tuple[float | None, float | None]:
    """Of a stream, (seconds to its first byte, mean seconds between its tokens)."""
    exchange = work.exchange
    if exchange is None or exchange.first_byte_s is None:
        return None, None
    tokens = work.decoded
    rest_s = now - exchange.arrived - exchange.first_byte_s
    return exchange.first_byte_s, rest_s / (tokens - 1) if tokens > 1 else None


def _p95_ms(seconds: list[float]) -> float | None:
    if not seconds:
        return None
    return round(sorted(seconds)[max(0, math.ceil(len(seconds) * 0.95) - 1)] * 1000, 3)
