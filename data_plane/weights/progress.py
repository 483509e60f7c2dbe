"""Progress of an import, told a few times a second. Knows nothing of what is counted."""

import time
from collections.abc import Callable

MIN_INTERVAL_S = 0.1


class Progress:
    """Calls `tell(stage, done, total)` at the start and end of each stage, and at most ten times a second between."""

    def __init__(self, tell: Callable[[str, int, int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._stage, self._told_at = "", 0.0

    def update(self, stage: str, done: int, total: int) -> None:
        """`total` 0: not known. The end of a stage is `done == total`."""
        now = self._clock()
        finished = done == total and total > 0
        if stage != self._stage or finished or now - self._told_at >= MIN_INTERVAL_S:
            self._stage, self._told_at = stage, now
            self._tell(stage, done, total)
