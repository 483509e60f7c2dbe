"""What a step costs, learned from the steps so far, and what follows for its size. Hears durations, reads no clock.

A step takes a + b·(decoded tokens) + c·(prompt tokens) seconds. a and b come from steps that only decode, by least
squares that forget; c from what other steps took more than that.
"""

FORGET = 0.97
"""Of each step's weight is left after the next."""
ASSUMED_SLOPE = 0.02
"""Of a step's time for one more decoded token, until steps of different sizes were seen: decodes wait for memory."""
FIRST_CHUNK = 64
"""Prompt tokens beside decodes while nothing is known."""
CHUNK_STEP = 16
"""Chunks are multiples of it, but for those below it: matrix tiles have so many rows."""
LEAST_CHUNK = 4
"""A prompt gets on by so much in any case, even where one of its tokens costs as much as a decode."""


class StepTimes:
    """Durations in seconds."""

    def __init__(self) -> None:
        self._weight = self._n = self._t = self._nn = self._nt = 0.0
        self._token_s: float | None = None

    def observe(self, num_decoded: int, num_prefilled: int, seconds: float) -> None:
        """One step took `seconds`."""
        expected = self.decode_s(num_decoded)
        if num_prefilled:
            # without a decode ever seen the fixed part is counted to the tokens
            extra = max(seconds - (expected or 0.0), 0.05 * seconds) / num_prefilled
            self._token_s = extra if self._token_s is None else 0.7 * self._token_s + 0.3 * extra
            return
        if expected is not None and self._weight > 5:
            # something else took the cores for a moment
            seconds = min(seconds, 3 * expected)
        self._weight = self._weight * FORGET + 1
        self._n = self._n * FORGET + num_decoded
        self._t = self._t * FORGET + seconds
        self._nn = self._nn * FORGET + num_decoded * num_decoded
        self._nt = self._nt * FORGET + num_decoded * seconds

    def decode_s(self, num_decoded: int) -> float | None:
        """How long a step of so many decoded tokens takes; None before the first one."""
        if not self._weight:
            return None
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        return max(mean_t + self._slope() * (num_decoded - mean_n), 0.2 * mean_t)

    def price(self, num_decoded: int) -> float:
        """What one more token costs in a step of `num_decoded`, counted in tokens that the same time would decode."""
        step_s = self.decode_s(num_decoded)
        return self._slope() * num_decoded / step_s if step_s else ASSUMED_SLOPE

    def chunk(self, num_decoded: int, most: int, growth: float) -> int:
        """Prompt tokens that may go beside so many decodes for the step to take at most `growth` times its time."""
        step_s = self.decode_s(num_decoded)
        if step_s is None or not self._token_s:
            return min(FIRST_CHUNK, most)
        room = int((growth - 1) * step_s / self._token_s)
        if room >= CHUNK_STEP:
            room -= room % CHUNK_STEP
        return min(max(room, LEAST_CHUNK), most)

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens a second, as they were lately; None before the first ones."""
        return 1 / self._token_s if self._token_s else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Decoded tokens a second of all requests together, as they were lately; None before the first ones."""
        return self._n / self._t if self._t else None

    def _slope(self) -> float:
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n * mean_n
        if variance < 0.01 * mean_n * mean_n:
            return ASSUMED_SLOPE * mean_t / mean_n
        slope = (self._nt / self._weight - mean_n * mean_t) / variance
        return min(max(slope, 0.0), mean_t / mean_n)
