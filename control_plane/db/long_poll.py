"""Answers a reader who has one version of something as soon as there is another. Knows nothing of what it is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import Bells
from control_plane.db.session import Database

LONGEST_WAIT_S = 60.0
LOOK_AGAIN_S = 5.0
"""A bell may be lost with the connection that it was to come by: who waits looks at the rows so often by itself."""


class Versioned(Protocol):
    """Something whose `version` names its content, so that a restart between two polls does not matter."""

    @property
    def version(self) -> str:
        """Opaque."""
        ...


State = TypeVar("State", bound=Versioned)


async def until_changed(
    database: Database,
    bells: Bells,
    topics: tuple[str, ...],
    read: Callable[[AsyncSession], Awaitable[State]],
    *,
    version: str,
    wait_s: float,
) -> State:
    """What `read` gives, once its version is not `version`; after `wait_s` seconds, or on shutdown, what there is."""
    clock = asyncio.get_running_loop().time
    until = clock() + wait_s
    with bells.listen(*topics) as listener:
        while True:
            async with database.transaction() as session:
                state = await read(session)
            if state.version != version or listener.closing or clock() >= until:
                return state
            await listener.wait(min(until - clock(), LOOK_AGAIN_S))
