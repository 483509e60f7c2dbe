"""What the best router could reach, and how much load that leaves room for.

*Ideal with the same caches*: one cache of all the replicas' blocks together, least recently used first, that every
request may use: no block is held twice, none is out of reach, and no replica is ever busy. A router that leaves evicting
to the replicas can be lucky, but not count on more. *Ideal with infinite caches*: what was computed once is never
computed again, so that each block is missed once.

*Saturation*: a replica's step budget is spent on prompt tokens that no cache held and on tokens decoded. The fleet is
saturated when sessions start at the rate at which these, with the ideal router's hits, take all of every replica's
budget. A load of 0.7 is 70 % of that rate.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil

from control_plane.simulator.cache import BlockCache
from control_plane.simulator.settings import ReplicaSettings
from control_plane.simulator.workload import Request, Workload

MOST_REQUESTS = 25_000
"""Of repeated sessions: a replay of more takes minutes."""
_ROUNDS = 3


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


def infinite_share(workload: Workload) -> float:
    """The hit share of a cache without bounds: in whatever order, each block is missed once."""
    blocks = sum(len(request.chain) for request in workload.requests())
    return 1.0 - len({name for request in workload.requests() for name in request.chain}) / blocks if blocks else 0.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A workload at the load asked for."""

    workload: Workload
    saturation_per_s: float
    """Requests a second at which the fleet is saturated."""


def at_load(
    workload: Workload, load: float, replicas: int, cache_blocks: int, settings: ReplicaSettings, seed: int = 0
) -> Calibrated:
    """The workload with its sessions' starts spread so that it offers `load` of what saturates the fleet.

    Sessions of many requests that all start within less time than one of them lasts would never run at that load
    together: they are repeated then, with names of their own, until they do or there are `MOST_REQUESTS`. How often
    blocks are found again depends on how many sessions run side by side, and so on the spread: a few rounds.
    """
    blocks, per_s = replicas * cache_blocks, replicas * settings.prefill_tokens_per_s
    requests = sum(1 for _ in workload.requests())
    if len(workload.sessions) == requests:
        saturated_s = unhindered(workload, blocks, settings).work_tokens / per_s
        return Calibrated(workload.over(saturated_s / load), requests / saturated_s)
    lasts_s = _usual_length_s(workload, settings)
    spread, times = workload.over(lasts_s), 1
    saturated_s = unhindered(spread, blocks, settings).work_tokens / per_s
    if saturated_s / load < lasts_s:
        times = max(1, min(ceil(lasts_s * load / saturated_s), MOST_REQUESTS // requests))
        spread = workload.repeated(times, seed) if times > 1 else workload
    for _ in range(_ROUNDS):
        spread = spread.over(times * saturated_s / load)
        saturated_s = unhindered(spread, blocks, settings).work_tokens / per_s / times
    return Calibrated(spread.over(times * saturated_s / load), requests / saturated_s)


def _usual_length_s(workload: Workload, settings: ReplicaSettings) -> float:
    """How long the middle one of the sessions lasts where it never waits and all is found."""
    lengths = sorted(
        sum(request.think_s + request.output_tokens * settings.step_s for request in session.requests)
        for session in workload.sessions
    )
    return lengths[len(lengths) // 2]
