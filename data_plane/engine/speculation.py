"""Guesses a request's next tokens from what it has said before (prompt lookup), as long as guessing pays.

Pure: knows tokens, counts and a price, nothing of models. Whether a guess was right never changes an answer, only
how many tokens a step gives.
"""

from collections.abc import Sequence

NGRAM = 3
"""So many tokens must have stood together before for their continuation to be guessed again."""
FIRST_WIDTH = 3
"""Guesses at once to begin with. All right: twice as many the next time; else as many as were right, and one."""
FIRST_PAUSE = 16
LONGEST_PAUSE = 512
"""Tokens without guesses after guessing did not pay; each further time in a row twice as many."""
MARGIN = 0.1
"""By so much the share of right guesses must exceed their price: checking them costs the host something too."""


class Guesser:
    """One request's index of n-grams and how its guesses fared. `tokens` is its list, which grows by itself."""

    __slots__ = ("_continuations", "_indexed", "_pause", "_resume_at", "_share", "_width", "tokens")

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self._continuations: dict[tuple[int, int, int], int] = {}
        self._indexed = NGRAM
        self._width = FIRST_WIDTH
        self._share = 0.5
        self._pause = FIRST_PAUSE
        self._resume_at = 0

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none where nothing is known or guessing does not pay."""
        tokens = self.tokens
        size = len(tokens)
        if most <= 0 or size < self._resume_at or size <= NGRAM:
            return []
        for at in range(self._indexed, size):
            # the latest place counts: texts drift
            self._continuations[tokens[at - 3], tokens[at - 2], tokens[at - 1]] = at
        self._indexed = size
        start = self._continuations.get((tokens[-3], tokens[-2], tokens[-1]))
        if start is None:
            return []
        guessed = list(tokens[start : start + min(self._width, most)])
        period = size - start
        # a text that repeats itself right here goes on doing so
        while len(guessed) < min(self._width, most):
            guessed.append(guessed[-period])
        return guessed

    def learn(self, num_guessed: int, num_right: int, price: float, most: int) -> None:
        """The first `num_right` of `num_guessed` were right; `price`: what checking one costs, in tokens."""
        self._share += 0.25 * (num_right / num_guessed - self._share)
        if num_right == num_guessed:
            self._width = min(2 * self._width, most)
            self._pause = FIRST_PAUSE
        else:
            self._width = num_right + 1
        if self._share < price + MARGIN:
            self._resume_at = len(self.tokens) + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            # a second chance, but a short one
            self._width, self._share = 1, price + 2 * MARGIN
