"""Who holds which block of the paged KV cache. Deals in integers; knows nothing of requests, tokens or tensors.

A block may have several holders. One that nobody holds is free, and what it holds may still be worth keeping: such
blocks are handed out last, and among them the one first that has been free longest.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens. `allocate` and `share` add a holder, `free` takes one away."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.on_reuse: Callable[[int], None] = lambda block: None
        """Hears of a kept block right before it is handed out to hold something else."""
        self._holders = [0] * num_blocks
        self._is_kept = bytearray(num_blocks)
        # a stack with the lowest ids on top: a request that grows alone gets neighbours, which torch can read in place
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._kept_free: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, kept ones too."""
        return len(self._blank) + len(self._kept_free)

    @property
    def kept(self) -> set[int]:
        """Blocks whose content is worth keeping, held or free."""
        return {block for block, is_kept in enumerate(self._is_kept) if is_kept}

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """`count` free blocks, whose caller is now their one holder; ValueError if fewer are free."""
        if count > self.num_free:
            raise ValueError(f"{count} blocks are wanted and {self.num_free} are free; free some first.")
        taken: list[int] = []
        for _ in range(count):
            if self._blank:
                block = self._blank.pop()
            else:
                block, _ = self._kept_free.popitem(last=False)
                self._is_kept[block] = 0
                self.on_reuse(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each of these kept blocks, whether free or held."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._kept_free[block]
            self._holders[block] += 1

    def touch(self, blocks: Sequence[int]) -> None:
        """Somebody will want these kept blocks soon: those that are free count as free since now, the last longest."""
        for block in reversed(blocks):
            if block in self._kept_free:
                self._kept_free.move_to_end(block)

    def free(self, blocks: Sequence[int]) -> None:
        """One holder fewer for each. Of one call the last falls free first: the end of a text is asked for less."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._is_kept[block]:
                    self._kept_free[block] = None
                else:
                    self._blank.append(block)

    def is_held(self, block: int) -> bool:
        """Whether anybody holds it."""
        return self._holders[block] > 0

    def keep(self, block: int) -> None:
        """What this held block holds is worth keeping once it is free."""
        self._is_kept[block] = 1

    def drop(self, block: int) -> None:
        """What it holds is worth nothing after all."""
        self._is_kept[block] = 0
        if block in self._kept_free:
            del self._kept_free[block]
            self._blank.append(block)

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """`held`: the blocks of each holder. Every block is in exactly one place, or AssertionError says which not."""
        holders = [0] * self.num_blocks
        for blocks in held:
            for block in blocks:
                holders[block] += 1
        assert holders == self._holders, f"holders by the books {self._holders}, by those who hold {holders}"
        free = sorted([*self._blank, *self._kept_free])
        idle = [block for block, count in enumerate(holders) if count == 0]
        assert free == idle, f"{len(free)} blocks are free by the books and {len(idle)} are held by nobody"
        astray = [block for block in self._blank if self._is_kept[block]]
        astray += [block for block in self._kept_free if not self._is_kept[block]]
        assert not astray, f"blocks {astray} are in the wrong list of free blocks"
