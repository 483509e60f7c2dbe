"""The one clock of the control plane: the database's, so that processes on machines that disagree still agree."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession


async def db_now(session: AsyncSession) -> datetime:
    """The time now, not that of the transaction's start."""
    return (await session.execute(select(func.clock_timestamp()))).scalar_one()


def unix(at: datetime | None) -> float | None:
    """Unix seconds, for the pure files, which know no datetime."""
    return None if at is None else at.timestamp()
