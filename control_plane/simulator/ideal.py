"""What the best router could reach.

*Ideal with the same caches*: one cache of all the replicas' blocks together, least recently used first, that every
request may use: no block is held twice, none is out of reach, and no replica is ever busy. A router that leaves
evicting to the replicas can be lucky, but not count on more. *Ideal with infinite caches*: what was computed once is
never computed again, so that each block is missed once.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from control_plane.simulator.cache import BlockCache
from control_plane.simulator.workload import Request, Workload


@dataclass(slots=True)
class Reuse:
    """What a cache did for a sequence of requests."""

    blocks: int = 0
    hits: int = 0
    work_tokens: int = 0
    """Prompt tokens not held, and tokens decoded."""

    @property
    def hit_share(self) -> float:
        """Blocks found, of all blocks of all prompts."""
        return self.hits / self.blocks if self.blocks else 0.0


def pooled(requests: Iterable[Request], capacity: int, block_tokens: int) -> Reuse:
    """One cache that all requests share, in the order in which they come."""
    cache, reuse = BlockCache(capacity), Reuse()
    for request in requests:
        matched = cache.match(request.chain)
        cache.insert(request.chain)
        reuse.blocks += len(request.chain)
        reuse.hits += matched
        reuse.work_tokens += max(1, request.prompt_tokens - matched * block_tokens) + request.output_tokens
    return reuse


def infinite_share(workload: Workload) -> float:
    """The hit share of a cache without bounds: in whatever order, each block is missed once."""
    blocks = sum(len(request.chain) for request in workload.requests())
    return 1.0 - len({name for request in workload.requests() for name in request.chain}) / blocks if blocks else 0.0
