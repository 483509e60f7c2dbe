"""A cache of prompt blocks: least recently used goes first, and of one prompt its end before its beginning.

Knows names of blocks, no tokens and no time.
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockCache:
    """At most `capacity` blocks (None: all). Prefix closed: a block is never held without those before it."""

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self._order: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: int) -> bool:
        return name in self._order

    def match(self, chain: Sequence[int]) -> int:
        """How many leading blocks of the chain are held."""
        order, low, high = self._order, 0, len(chain)
        while low < high:
            middle = (low + high) // 2
            if chain[middle] in order:
                low = middle + 1
            else:
                high = middle
        return low

    def touch(self, chain: Sequence[int]) -> int:
        """How many leading blocks of the chain are held; they count as used now, because they are about to be."""
        matched = self.match(chain)
        for name in reversed(chain[:matched]):
            self._order.move_to_end(name)
        return matched

    def insert(self, chain: Sequence[int]) -> tuple[Sequence[int], list[int]]:
        """Use the chain's blocks; returns those that were not held, and those that had to go for them.

        Of a chain longer than the cache only the beginning is kept.
        """
        order, capacity = self._order, self.capacity
        kept = chain if capacity is None else chain[:capacity]
        new = kept[self.match(kept) :]
        use = order.move_to_end
        for name in reversed(kept):
            order[name] = None
            use(name)
        gone: list[int] = []
        if capacity is not None:
            while len(order) > capacity:
                gone.append(order.popitem(last=False)[0])
        return new, gone

    def check(self) -> None:
        """Never over its capacity; AssertionError where it is."""
        assert self.capacity is None or len(self) <= self.capacity, f"{len(self)} blocks in room for {self.capacity}"
