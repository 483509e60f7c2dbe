"""Wakes whoever waits for a change of rows, in any process, by PostgreSQL's LISTEN/NOTIFY. A bell says only that
something changed under a topic; what changed is read from the rows. Knows nothing of who waits or why.

Who waits in the process that made the change hears of it as soon as it has committed, without the way through the
server: a wake rings four times before its first token.

Topics in use: `keys` (API keys), `routes` (where gateways may send requests), `progress` (what else they see: how far a
start is), `node:<id>` (a node's desired state), `placement`, `endpoints` (autoscaler), `jobs`, `events`. Those of LAZY
are heard a little later, so that what rang them goes first.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Generator, Iterable

import psycopg
import structlog
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from control_plane.db import metrics
from control_plane.db.backoff import pause_s

CHANNEL = "ebb"
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LAZY = frozenset({"progress", "endpoints"})
LAZY_S = 0.15
"""Heard so much later, once for all that rang meanwhile: on the way of a wake they took a third of its time."""
PENDING, RUNG, ORIGIN = "ebb_bells", "ebb_bells_rung", "ebb_origin"
"""Where a session keeps the bells that its commit rings, those it has rung, and who it is."""
MARK = "|"

_NOTIFY = text("select pg_notify(:channel, bell) from unnest(cast(:bells as text[])) as bell")

log = structlog.get_logger("control_plane.bells")


def ring(session: AsyncSession | Session, *topics: str) -> None:
    """Rings `topics` when this transaction commits; a rollback rings nothing, a repeated topic rings once."""
    session.info.setdefault(PENDING, {}).update(dict.fromkeys(topics))


@event.listens_for(Session, "before_commit")
def _ring_pending(session: Session) -> None:
    if session.in_nested_transaction():
        return  # a savepoint's end is not yet the transaction's
    topics: dict[str, None] = session.info.pop(PENDING, {})
    if not topics:
        return
    origin = str(session.info.get(ORIGIN, ""))
    session.execute(_NOTIFY, {"channel": CHANNEL, "bells": [f"{topic}{MARK}{origin}" for topic in topics]})
    session.info.setdefault(RUNG, {}).update(topics)


@event.listens_for(Session, "after_rollback")
def _drop_pending(session: Session) -> None:
    if not session.in_nested_transaction():
        session.info.pop(PENDING, None)
        session.info.pop(RUNG, None)


class Listener:
    """Ears for some topics. A bell rung between two waits is not lost: the next wait returns at once."""

    def __init__(self, bells: "Bells") -> None:
        self._bells = bells
        self._rung = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None

    @property
    def closing(self) -> bool:
        """True once the process is shutting down: answer with what there is and end."""
        return self._bells.closing

    async def wait(self, timeout_s: float) -> bool:
        """True as soon as a topic rang (or the process is shutting down), False after `timeout_s`."""
        if self._bells.closing:
            return True
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True

    def take(self) -> bool:
        """Whether a topic rang since the last wait or take; does not wait."""
        rung = self._rung.is_set()
        self._rung.clear()
        return rung

    def ring(self) -> None:
        """Wakes the waiter, or lets its next wait return at once."""
        self._rung.set()

    def ring_later(self) -> None:
        """The same in LAZY_S, however often it rings until then."""
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(LAZY_S, self._ripe)

    def close(self) -> None:
        """Nobody waits any more."""
        if self._later is not None:
            self._later.cancel()

    def _ripe(self) -> None:
        self._later = None
        self.ring()


class Bells:
    """One LISTEN connection of this process, shared by all its listeners. `origin`: what its own bells are marked with,
    so that what `rung_here` has told is not told again."""

    def __init__(self, database_url: str) -> None:
        self.closing = False
        self.origin = secrets.token_hex(4)
        self._database_url = database_url
        self._listeners: dict[str, set[Listener]] = {}
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()

    async def start(self) -> None:
        """Begins to listen; returns once connected, or after 5 s while it goes on trying."""
        self._task = asyncio.create_task(self._run(), name="bells")
        with contextlib.suppress(TimeoutError):  # readiness tells of a database that is down; this goes on trying
            async with asyncio.timeout(5):
                await self._connected.wait()

    async def stop(self) -> None:
        """Wakes every listener with `closing` set, then ends the connection."""
        self.hush()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def hush(self) -> None:
        """Says that the process is shutting down: every wait returns at once from now on."""
        self.closing = True
        self._ring_all()

    @contextlib.contextmanager
    def listen(self, *topics: str) -> Generator[Listener]:
        """Ears for `topics`. Enter it before reading the rows, so that a change after the reading is heard."""
        listener = Listener(self)
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)
        try:
            yield listener
        finally:
            listener.close()
            for topic in topics:
                ears = self._listeners[topic]
                ears.discard(listener)
                if not ears:
                    del self._listeners[topic]

    async def wait(self, topic: str, timeout_s: float) -> bool:
        """Waits for one ring of `topic`; only for callers to whom a ring before the call does not matter."""
        with self.listen(topic) as listener:
            return await listener.wait(timeout_s)

    def rung(self, topic: str) -> None:
        """A bell was heard: wakes the listeners of its topic."""
        for listener in self._listeners.get(topic, ()):
            listener.ring_later() if topic in LAZY else listener.ring()

    def rung_here(self, topics: Iterable[str]) -> None:
        """A transaction of this process has committed that rang `topics`."""
        for topic in topics:
            self.rung(topic)

    def _ring_all(self) -> None:
        for ears in self._listeners.values():
            for listener in ears:
                listener.ring()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._listen()
            except psycopg.Error as error:
                # heard again after a reconnect: `_listen` rings all bells, because some may have rung meanwhile
                failures = 1 if self._connected.is_set() else failures + 1
                self._connected.clear()
                metrics.RECONNECTS.inc()
                wait_s = pause_s(failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)
                log.warning("bells_reconnect", error=str(error).strip(), wait_s=round(wait_s, 3))
                await asyncio.sleep(wait_s)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._database_url, autocommit=True, connect_timeout=5, application_name="ebb-bells",
            keepalives_idle=10, keepalives_interval=5, keepalives_count=3,
        )  # fmt: skip
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            self._connected.set()
            self._ring_all()
            async for notification in connection.notifies():
                topic, _, origin = notification.payload.partition(MARK)
                if origin != self.origin:
                    self.rung(topic)
        raise psycopg.OperationalError("the LISTEN connection ended")
