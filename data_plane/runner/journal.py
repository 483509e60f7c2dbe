"""Which labels the prefix cache holds, as a list of changes that can be asked for from any point on; and the load.

Everything here happens in the event loop's thread: the engine's thread hands over each step's changes. Knows nothing of
text or HTTP.
"""

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass

from data_plane.engine.engine import EngineStats

MOST_CHANGES = 65_536
"""Of labels, kept for those who ask for what came since; who asks for older ones gets everything."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do to a copy of the labels as they were, to have them as they are at `seq`; `full`: to an empty one."""

    seq: int
    full: bool
    stored: list[int]
    evicted: list[int]


class Journal:
    """`seq` counts states: it grows with every change of labels, and of the requests and prompts there are."""

    def __init__(self, stats: EngineStats, most_changes: int = MOST_CHANGES) -> None:
        self.epoch = secrets.token_hex(8)
        self.seq = 0
        self.stats = stats
        self.held: set[int] = set()
        self._most = most_changes
        self._kept: deque[tuple[int, dict[int, bool]]] = deque()
        self._num_kept = 0
        self._first = 0
        """Changes after this state are kept."""
        self._changed = asyncio.Event()
        self._closed = False
        self._chars = self._tokens = 0.0

    def take(self, stats: EngineStats, changed: dict[int, bool]) -> None:
        """One step of the engine: its numbers, and the labels that came (True) or went."""
        before, self.stats = self.stats, stats
        if changed:
            self._note(changed)
        elif (
            before.running == stats.running
            and before.waiting == stats.waiting
            and before.pending_prompt_tokens == stats.pending_prompt_tokens
        ):
            return
        else:
            self.seq += 1
        self._changed.set()

    def _note(self, changed: dict[int, bool]) -> None:
        self.seq += 1
        for label, is_held in changed.items():
            if is_held:
                self.held.add(label)
            else:
                self.held.discard(label)
        self._kept.append((self.seq, changed))
        self._num_kept += len(changed)
        while self._num_kept > self._most:
            self._first, gone = self._kept.popleft()
            self._num_kept -= len(gone)

    def since(self, epoch: str, seq: int) -> Changes:
        """What came after state `seq` of `epoch`, or everything where that is not known any more."""
        if epoch != self.epoch or not self._first <= seq <= self.seq:
            return Changes(self.seq, True, list(self.held), [])
        last: dict[int, bool] = {}
        for at, changed in reversed(self._kept):
            if at <= seq:
                break
            for label, is_held in changed.items():
                last.setdefault(label, is_held)
        stored = [label for label, is_held in last.items() if is_held]
        return Changes(self.seq, False, stored, [label for label, is_held in last.items() if not is_held])

    async def wait(self, seq: int, timeout_s: float) -> None:
        """Until there is a state after `seq`, `timeout_s` at most, or the process ends."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.seq <= seq and not self._closed:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:  # nothing has changed: that is an answer too
            return

    def close(self) -> None:
        """Nobody shall wait any longer."""
        self._closed = True
        self._changed.set()

    @property
    def closed(self) -> bool:
        """Whether the process ends."""
        return self._closed

    def measured(self, chars: int, tokens: int) -> None:
        """A prompt of so many characters became so many tokens."""
        self._chars, self._tokens = 0.98 * self._chars + chars, 0.98 * self._tokens + tokens

    @property
    def chars_per_token(self) -> float | None:
        """Of the last prompts; None before the first."""
        return self._chars / self._tokens if self._tokens else None
