"""The pool of connections and its transactions: a request has one, a service never commits. Knows no tables."""

import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from control_plane.db.bells import ORIGIN, RUNG

STATEMENT_TIMEOUT_S = 15
LOCK_TIMEOUT_S = 5
IDLE_IN_TRANSACTION_S = 30
QUIET_S = 1.0
"""A connection that was not used for longer is tried before it is: a server that was started again has dropped it."""


def driver_url(database_url: str) -> str:
    """SQLAlchemy's form of a `postgresql://` URL."""
    return "postgresql+psycopg://" + database_url.partition("://")[2]


class Database:
    """One small pool per process. Every statement is bounded in time, so that nothing waits for ever on a lock.

    `rung` is told the bells of each transaction once it has committed; `origin` marks them (see db/bells.py).
    """

    def __init__(
        self,
        database_url: str,
        *,
        pool_size: int = 6,
        rung: Callable[[Iterable[str]], None] | None = None,
        origin: str = "",
    ) -> None:
        self.url = database_url
        self._rung = rung
        options = (
            f"-c statement_timeout={STATEMENT_TIMEOUT_S}s -c lock_timeout={LOCK_TIMEOUT_S}s "
            f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_S}s -c timezone=UTC"
        )
        self._engine = create_async_engine(
            driver_url(database_url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            pool_recycle=1800,
            hide_parameters=True,  # values, hashes of keys among them, stay out of errors and logs
            connect_args={"options": options, "connect_timeout": 5, "application_name": "ebb"},
        )
        _ping_after(self._engine, QUIET_S)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False, info={ORIGIN: origin})

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """A session that commits when the block ends well and rolls back when it does not."""
        async with self._sessions() as session:
            yield session
            await session.commit()
            if self._rung is not None and (topics := session.info.pop(RUNG, None)):
                self._rung(topics)

    async def ping(self) -> None:
        """Raises if the database does not answer."""
        async with self._sessions() as session:
            await session.execute(text("select 1"))

    async def close(self) -> None:
        """Closes the pool; transactions still open fail."""
        await self._engine.dispose()


def _ping_after(engine: AsyncEngine, quiet_s: float) -> None:
    """SQLAlchemy's own `pool_pre_ping` asks the server each time, which is a fifth of a short transaction."""

    @event.listens_for(engine.sync_engine, "checkin")
    def note(_: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def check(connection: DBAPIConnection, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("used_at", 0.0) < quiet_s:
            return
        try:
            engine.sync_engine.dialect.do_ping(connection)
        except engine.sync_engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error  # the pool takes another one, or makes it
