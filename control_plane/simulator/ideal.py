"""What the best router could reach, and how much load that leaves room for.

*Ideal with the same caches*: one cache of all the replicas' blocks together, least recently used first, that every
request may use. No block is held twice and none is out of reach, so no router that leaves evicting to the replicas can
be expected to do better. *Ideal with infinite caches*: whatever was computed once is never computed again.

*Saturation*: a replica's step budget is spent on prompt tokens that no cache held and on tokens decoded. The fleet is
saturated when sessions start at the rate at which these, with the ideal router's hits, take all of every replica's
budget. A load of 0.7 is 70 % of that rate.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

from control_plane.simulator.cache import BlockCache
from control_plane.simulator.settings import ReplicaSettings
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


class Pool:
    """One cache that all requests share, in the order in which they come."""

    def __init__(self, capacity: int | None, block_tokens: int) -> None:
        self.reuse = Reuse()
        self._cache = BlockCache(capacity)
        self._block_tokens = block_tokens

    def take(self, request: Request) -> int:
        """Use the prompt's blocks; the number of its tokens that had to be computed."""
        matched = self._cache.match(request.chain)
        self._cache.insert(request.chain)
        computed = max(1, request.prompt_tokens - matched * self._block_tokens)
        self.reuse.blocks += len(request.chain)
        self.reuse.hits += matched
        self.reuse.work_tokens += computed + request.output_tokens
        return computed


def unhindered(workload: Workload, capacity: int | None, settings: ReplicaSettings) -> Reuse:
    """The pooled cache where no request ever waits for another: the order in which they come then."""
    pool = Pool(capacity, workload.block_tokens)
    events = [(session.start_s, number, 0) for number, session in enumerate(workload.sessions)]
    events.sort()
    while events:
        now, number, at = heappop(events)
        requests = workload.sessions[number].requests
        served_s = (
            pool.take(requests[at]) / settings.prefill_tokens_per_s + requests[at].output_tokens * settings.step_s
        )
        if at + 1 < len(requests):
            heappush(events, (now + served_s + requests[at + 1].think_s, number, at + 1))
    return pool.reuse


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A workload at the load asked for."""

    workload: Workload
    saturation_per_s: float
    """Requests a second at which the fleet is saturated."""


def at_load(workload: Workload, load: float, replicas: int, cache_blocks: int, settings: ReplicaSettings) -> Calibrated:
    """The workload with its sessions' starts spread so that it offers `load` of what saturates the fleet.

    How often blocks are found again depends on how many sessions run side by side, and so on the spread: a few rounds.
    """
    requests = sum(1 for _ in workload.requests())
    capacity_per_s = replicas * settings.prefill_tokens_per_s
    spread = workload
    saturated_s = 0.0
    for _ in range(1 if len(workload.sessions) == requests else 6):
        work = unhindered(spread, replicas * cache_blocks, settings).work_tokens
        saturated_s = work / capacity_per_s
        spread = workload.over(saturated_s / load)
    return Calibrated(spread, requests / saturated_s)
