"""Whose prompt a replica's engine begins with next, as data_plane/engine/waiting.py has it for one tenant's requests of
one priority. Knows nothing of what they are."""

from collections.abc import Callable
from typing import TypeVar

from data_plane.engine.waiting import TURNS, WINDOW, first_of

T = TypeVar("T")


class Turns:
    """Of one replica."""

    def __init__(self) -> None:
        self._turn = 0

    def take(self, waiting: list[T], owed: Callable[[T], int]) -> T:
        """Takes the next out of those that wait, the oldest first; `owed` says how many tokens one has to compute."""
        self._turn = (self._turn + 1) % TURNS
        return waiting.pop(first_of([owed(one) for one in waiting[:WINDOW]]) if self._turn else 0)
