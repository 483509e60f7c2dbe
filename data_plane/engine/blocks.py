"""Who holds which block of the paged KV cache. Deals in integers; knows nothing of requests' tokens or of tensors.

Blocks are handed out so that one owner's lie side by side where possible: attention can then read its keys and
values in place instead of gathering them. Each owner therefore has, besides the blocks it holds, a headroom: free
blocks right behind its last one, which others take (from the far end) only when nothing else is free.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field


class FreeIntervals:
    """A sorted set of half-open intervals of free blocks that neither overlap nor touch."""

    def __init__(self, stop: int) -> None:
        self._spans: list[tuple[int, int]] = [(0, stop)] if stop else []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)

    def insert(self, start: int, stop: int) -> None:
        """Gives `[start, stop)` back, joined with the neighbours it touches."""
        if start >= stop:
            return
        at = bisect_left(self._spans, (start, stop))
        if at < len(self._spans) and self._spans[at][0] == stop:
            stop = self._spans.pop(at)[1]
        if at > 0 and self._spans[at - 1][1] == start:
            at -= 1
            start = self._spans.pop(at)[0]
        self._spans.insert(at, (start, stop))

    def cut(self, span: tuple[int, int], count: int) -> tuple[int, int]:
        """Takes the first `count` blocks of `span`, which must be one of the intervals."""
        at = bisect_left(self._spans, span)
        start, stop = span
        if start + count < stop:
            self._spans[at] = (start + count, stop)
        else:
            del self._spans[at]
        return start, min(stop, start + count)

    def starting_at(self, start: int) -> tuple[int, int] | None:
        """The interval that begins at `start`, if there is one."""
        at = bisect_left(self._spans, (start, start))
        return self._spans[at] if at < len(self._spans) and self._spans[at][0] == start else None


@dataclass(slots=True)
class BlockTable:
    """The blocks of one owner in the order of its tokens. `[head, tail)` is its headroom: free, and kept for it."""

    ids: list[int] = field(default_factory=list[int])
    is_contiguous: bool = True
    head: int = 0
    tail: int = 0

    def append_from_headroom(self, count: int) -> None:
        """Takes `count` blocks out of the headroom."""
        if self.ids and self.ids[-1] + 1 != self.head:
            self.is_contiguous = False
        self.ids.extend(range(self.head, self.head + count))
        self.head += count


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens; allocate and free come in pairs, by owner."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = FreeIntervals(num_blocks)
        self._tables: dict[str, BlockTable] = {}
        self._num_used = 0

    @property
    def num_free(self) -> int:
        """Blocks no owner holds; headrooms count as free."""
        return self.num_blocks - self._num_used

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def table(self, owner: str) -> BlockTable:
        """The owner's table, which grows and ends with it; an empty one where it holds nothing."""
        return self._tables.get(owner) or BlockTable()

    def allocate(self, owner: str, count: int, expected: int = 0) -> BlockTable:
        """Gives `owner` `count` more blocks; ValueError if fewer are free.

        `expected` is how many it may hold in the end: the headroom is chosen by it, nothing is promised.
        """
        if count > self.num_free:
            raise ValueError(f"{count} blocks are wanted and {self.num_free} are free; free some first.")
        table = self._tables.setdefault(owner, BlockTable())
        self._num_used += count
        while count:
            if table.head == table.tail:
                room = max(count, expected - len(table.ids))
                table.head, table.tail = self._claim(count, room, table.ids[-1] + 1 if table.ids else None)
            taken = min(count, table.tail - table.head)
            table.append_from_headroom(taken)
            count -= taken
        return table

    def free(self, owner: str) -> None:
        """Takes all blocks and the headroom back; KeyError for an owner that holds none."""
        table = self._tables.pop(owner)
        self._num_used -= len(table.ids)
        self._free.insert(table.head, table.tail)
        start = 0
        for at in range(1, len(table.ids) + 1):
            if at == len(table.ids) or table.ids[at] != table.ids[at - 1] + 1:
                self._free.insert(table.ids[start], table.ids[at - 1] + 1)
                start = at

    def _claim(self, count: int, room: int, after: int | None) -> tuple[int, int]:
        """At least one free block: best right behind `after`, then where `room` fits tightest, then the largest."""
        if after is not None and (behind := self._free.starting_at(after)):
            return self._free.cut(behind, room)
        spans = list(self._free)
        fitting = [span for span in spans if span[1] - span[0] >= room]
        if fitting:
            return self._free.cut(min(fitting, key=lambda span: span[1] - span[0]), room)
        largest = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
        lender = max(self._tables.values(), key=lambda table: table.tail - table.head)
        lendable = lender.tail - lender.head
        if largest[1] > largest[0] and (largest[1] - largest[0] >= count or lendable < count):
            return self._free.cut(largest, room)
        # from the far end of the longest headroom: its owner keeps the half that it will need first
        taken = max(min(count, lendable), min(room, lendable // 2))
        lender.tail -= taken
        return lender.tail, lender.tail + taken

    def check(self) -> None:
        """Every block is in exactly one place: held, in a headroom, or free. Raises AssertionError with both sums."""
        held = [block for table in self._tables.values() for block in table.ids]
        headroom = [block for table in self._tables.values() for block in range(table.head, table.tail)]
        free = [block for start, stop in self._free for block in range(start, stop)]
        assert sorted(held + headroom + free) == list(range(self.num_blocks)), (
            f"{len(held)} held + {len(headroom)} in headrooms + {len(free)} free do not make {self.num_blocks} blocks"
        )
        assert self._num_used == len(held), f"{self._num_used} blocks are counted as used and {len(held)} are held"
        for owner, table in self._tables.items():
            straight = all(b == a + 1 for a, b in zip(table.ids, table.ids[1:], strict=False))
            assert straight or not table.is_contiguous, f"the blocks of {owner} are scattered but called contiguous"
