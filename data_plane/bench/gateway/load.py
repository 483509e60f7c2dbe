"""The two ways to load a target: as fast as some connections can (closed loop), or at a fixed rate (open loop).

Knows nothing of what is behind a target.
"""

import asyncio
from dataclasses import dataclass, field
from time import perf_counter

from data_plane.bench.gateway.client import Connection, Requests, Target, connect

LATE_S = 30.0
"""How long answers may still take when a load has ended; then they are errors."""


@dataclass
class Carried:
    """What a closed loop got through: answers that ended well, their events, and what did not."""

    seconds: float = 0.0
    answers: int = 0
    events: int = 0
    errors: int = 0


@dataclass
class FirstBytes:
    """Seconds from sending to the first byte of the body, of each answer that ended well."""

    seconds: list[float] = field(default_factory=list[float])
    errors: int = 0


async def closed_loop(
    target: Target, stream: bool, connections: int, duration_s: float, events: int, most_answers: int = 0
) -> Carried:
    """Keep each connection busy for `duration_s`, or until `most_answers`. A stream of other than `events` failed."""
    carried, requests = Carried(), Requests(target, stream)
    opened = [await connect(target) for _ in range(connections)]
    done = asyncio.Event()
    started = perf_counter()
    deadline = started + duration_s
    busy = len(opened)

    def on_end(connection: Connection) -> None:
        nonlocal busy
        if connection.ended <= deadline:
            if connection.ok and (not stream or connection.events == events):
                carried.answers += 1
                carried.events += connection.events
            else:
                carried.errors += 1
            enough = most_answers and carried.answers + carried.errors >= most_answers
            if not connection.closed and not enough:
                connection.send(requests.next(), on_end)
                return
        busy -= 1
        if busy == 0:
            done.set()

    for connection in opened:
        connection.send(requests.next(), on_end)
    try:
        async with asyncio.timeout(duration_s + LATE_S):
            await done.wait()
    except TimeoutError:
        carried.errors += busy
    # what ended after the deadline was left out above
    carried.seconds = perf_counter() - started if most_answers else duration_s
    for connection in opened:
        connection.close()
    return carried


class OpenLoop:
    """Sends to one target whenever it is told to, on an idle connection, or on a new one where all are busy."""

    def __init__(self, target: Target, stream: bool, events: int) -> None:
        self.result = FirstBytes()
        self._target = target
        self._requests = Requests(target, stream)
        self._events = events if stream else 0
        self._idle: list[Connection] = []
        self._all: list[Connection] = []
        self._in_hand = 0

    async def prepare(self, connections: int) -> None:
        """Open connections beforehand, so that connecting is not measured."""
        self._all = [await connect(self._target) for _ in range(connections)]
        self._idle = list(self._all)

    def send(self) -> None:
        """One request, now. Where no connection is left it is an error: the target holds too many."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                self._in_hand += 1
                connection.send(self._requests.next(), self._on_end)
                return
        self.result.errors += 1

    def _on_end(self, connection: Connection) -> None:
        self._in_hand -= 1
        if connection.ok and connection.events == self._events:
            self.result.seconds.append(connection.first - connection.sent)
        else:
            self.result.errors += 1
        if not connection.closed:
            self._idle.append(connection)

    async def finish(self) -> FirstBytes:
        """Wait for the answers that are due, and hang up."""
        deadline = perf_counter() + LATE_S
        # an event would cost each answer something while it is measured
        while self._in_hand and perf_counter() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.result.errors += self._in_hand
        for connection in self._all:
            connection.close()
        return self.result


async def alternate(
    targets: list[Target], stream: bool, rate: float, duration_s: float, events: list[int], connections: int = 256
) -> list[FirstBytes]:
    """`rate` requests a second to each of the targets, turn by turn, so that all see the same machine."""
    loops = [OpenLoop(target, stream, count) for target, count in zip(targets, events, strict=True)]
    for each in loops:
        await each.prepare(connections)
    gap = 1 / (rate * len(loops))
    begun = perf_counter()
    for at in range(round(duration_s * rate) * len(loops)):
        # times are kept from the start: a late turn does not delay those after it
        pause = begun + at * gap - perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        loops[at % len(loops)].send()
    return [await each.finish() for each in loops]
