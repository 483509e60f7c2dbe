"""Deletes usage that is older than it is kept. Knows nothing of what it tells."""

from control_plane.db.loop import Leadership
from control_plane.usage import service

EVERY_S = 600.0
MOST = 2_000
"""Rows that one transaction deletes: it holds its locks for milliseconds."""
PAUSE_S = 0.2
"""Between two of them where there is more: others come in between."""


class UsageLoop:
    """Once in ten minutes, and again at once as long as there is more to delete than one transaction should."""

    name = "usage"
    topics: tuple[str, ...] = ()
    interval_s = EVERY_S

    def __init__(self, days: int, *, most: int = MOST) -> None:
        self._days = days
        self._most = most

    async def tick(self, leadership: Leadership) -> float | None:
        """One transaction."""
        async with leadership.transaction() as session:
            deleted = await service.purge(session, self._days, self._most)
        return PAUSE_S if deleted >= self._most else None
