"""Standard output and error that cannot end the process: a runner outlives whoever reads them."""

import io
import sys
from typing import TextIO


class Unbreakable(io.TextIOBase):
    """Passes text on, and drops it where nobody can take it (a closed pipe, a full disk)."""

    def __init__(self, target: TextIO) -> None:
        self._target = target

    def write(self, text: str, /) -> int:
        try:
            self._target.write(text)
            self._target.flush()
        except (OSError, ValueError):
            # there is no place left to tell it: losing a line of the log is better than losing requests
            return len(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def fileno(self) -> int:
        """The descriptor of what is written to."""
        return self._target.fileno()


def keep_output_alive() -> None:
    """From now on no write to standard output or error raises."""
    sys.stdout = Unbreakable(sys.stdout)
    sys.stderr = Unbreakable(sys.stderr)
