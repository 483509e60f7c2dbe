"""Tokens of one stream to text, as they come: no character before all of its bytes, no byte decoded twice.

Also stop strings: text is held back only while it may still become one. Knows nothing of requests or the network.
"""

import codecs
from collections.abc import Callable, Sequence


class Detokenizer:
    """One stream's state: at most the three bytes of an unfinished character."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The characters that `token_id` completes, perhaps none."""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """What is left when no more tokens come: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Finds the first of some texts in a text that comes in pieces; the one that ends first wins, then the longest."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be shown now. Once `stopped`, everything from the stop on is gone."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = self._overlap(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, where no stop came of it."""
        held, self._held = self._held, ""
        return "" if self.stopped else held

    def _overlap(self, text: str) -> int:
        """Length of the longest end of `text` that some stop starts with."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(text), len(stop) - 1), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
