"""How fast an endpoint's places come free, and so how long those in line are likely to wait. Pure.

Knows nothing of lines or replicas; times are seconds of one monotonic clock.
"""

import math
from collections import deque

REMEMBERED = 64
"""Returns that the rate is taken from: enough to smooth, few enough to follow a change."""
LONGEST_RETRY_S = 120


class Pace:
    """Notes every place that came free."""

    def __init__(self) -> None:
        self._returns: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, now: float) -> None:
        """A place came free."""
        self._returns.append(now)

    def wait_s(self, ahead: int, now: float) -> float | None:
        """How long `ahead` requests take to get their places; None where too little was seen to say.

        While nothing comes free the answer grows: the time since the last return counts.
        """
        if len(self._returns) < 2 or now <= self._returns[0]:
            return None
        return ahead * (now - self._returns[0]) / len(self._returns)


def retry_after_s(expected_s: float, spread: float = 0.0) -> int:
    """Whole seconds after which to come again, 1 to 120: what is expected, and up to as much more for `spread` 1.

    `spread` (0 to 1, drawn by the caller) keeps clients that were refused together from coming back together.
    """
    return max(1, min(LONGEST_RETRY_S, math.ceil(expected_s * (1.0 + spread))))
