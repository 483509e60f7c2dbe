"""A model of a replica: continuous batching with chunked prefill, in continuous time. Knows nothing of routing.

Each step of the engine takes `step_s` and a little for every token in it. While a prompt is computed, steps are full:
one token for each request that decodes, the rest of `step_tokens` for the prompt. Otherwise a step has only the
decoding requests' tokens. Between two events both rates are constant, so that nothing is simulated step by step.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from control_plane.simulator.cache import BlockCache
from control_plane.simulator.settings import ReplicaSettings
from control_plane.simulator.turns import Turns
from control_plane.simulator.workload import Request
from data_plane.router.loads import Report

_LITTLE = 1e-6
"""Tokens: what is left of a prompt after rounding."""


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the fleet; times in seconds since the replay began, None until they happened."""

    number: int
    session: int
    at: int
    request: Request
    arrived: float
    gateway: int = 0
    replica: int = -1
    expected_tokens: int = 0
    """Prompt tokens that were not held when it came to the replica."""
    matched_blocks: int = 0
    computed_tokens: int = 0
    first_at: float | None = None
    ended_at: float | None = None


@dataclass(slots=True)
class _Journal:
    """What was stored and evicted since the last report: for each name only what is true now."""

    held: dict[int, bool] = field(default_factory=dict[int, bool])

    def take(self) -> tuple[list[int], list[int]]:
        stored = [name for name, held in self.held.items() if held]
        evicted = [name for name, held in self.held.items() if not held]
        self.held = {}
        return stored, evicted


class Replica:
    """One replica. `submit` and `advance` move it; `next_at` says when it has something to tell."""

    def __init__(self, settings: ReplicaSettings, block_tokens: int, cache: BlockCache) -> None:
        self.cache = cache
        self.work_tokens = 0
        """Prompt tokens computed and tokens decoded: what this replica has done."""
        self._settings = settings
        self._block_tokens = block_tokens
        self._journal = _Journal()
        self._waiting: list[Job] = []
        self._turns = Turns()
        self._waiting_tokens = 0
        self._prefilling: Job | None = None
        self._left = 0.0
        self._decoding: list[tuple[float, int, Job]] = []
        """By the value of `_decoded` at which each ends."""
        self._decoded = 0.0
        """Tokens decoded by a request that has been decoding since the beginning."""
        self._now = 0.0

    @property
    def in_flight(self) -> int:
        """Requests here, running or waiting."""
        return len(self._waiting) + len(self._decoding) + (self._prefilling is not None)

    def submit(self, job: Job, now: float) -> None:
        """A request arrives: what it will find counts as used now, as in the engine. Call `advance` up to now first."""
        matched = self.cache.touch(job.request.chain) * self._block_tokens
        job.expected_tokens = max(1, job.request.prompt_tokens - matched)
        self._waiting.append(job)
        self._waiting_tokens += job.expected_tokens
        self._begin()

    def next_at(self) -> float:
        """When the next prompt is computed or the next answer ends, if nothing else comes; infinite while idle."""
        prefill, decode = self._rates()
        at = self._now + self._left / prefill if self._prefilling else inf
        if self._decoding:
            at = min(at, self._now + max(0.0, self._decoding[0][0] - self._decoded) / decode)
        return at

    def advance(self, now: float) -> tuple[Job | None, list[Job]]:
        """Move on to `now`, at most `next_at`. Returns whose first token came, and whose answers ended."""
        prefill, decode = self._rates()
        passed, self._now = now - self._now, now
        if self._decoding:
            self._decoded += passed * decode
        first: Job | None = None
        ended: list[Job] = []
        if (job := self._prefilling) is not None:
            self._left -= passed * prefill
            if self._left <= _LITTLE:
                first = self._first_token(job, now)
        while self._decoding and self._decoding[0][0] <= self._decoded + _LITTLE:
            ended.append(heappop(self._decoding)[2])
        for job in ended:
            job.ended_at = now
            self.work_tokens += job.request.output_tokens
        self._begin()
        return first, ended

    def report(self) -> tuple[Report, list[int], list[int]]:
        """What it says of itself, and the blocks stored and evicted since it said so last."""
        _, decode = self._rates()
        running = len(self._decoding) + (self._prefilling is not None)
        report = Report(
            running=running,
            waiting=len(self._waiting),
            pending_tokens=self._waiting_tokens + int(self._left),
            kv_usage=running / self._settings.batch,
            prefill_tokens_per_s=self._settings.prefill_tokens_per_s,
            decode_tokens_per_s=decode * len(self._decoding) or None,
        )
        return report, *self._journal.take()

    def _rates(self) -> tuple[float, float]:
        """Tokens a second of the prompt being computed, and of each request that decodes."""
        settings, decoding = self._settings, len(self._decoding)
        if self._prefilling is None:
            return 0.0, 1.0 / (settings.step_s + decoding * settings.token_s)
        return (settings.step_tokens - decoding) / settings.full_step_s, 1.0 / settings.full_step_s

    def _begin(self) -> None:
        """Start on a prompt that waits, in the engine's order, where the batch has a place for it."""
        if self._prefilling is not None or not self._waiting or len(self._decoding) >= self._settings.batch:
            return
        job = self._turns.take(self._waiting, lambda job: job.expected_tokens)
        self._waiting_tokens -= job.expected_tokens
        job.matched_blocks = self.cache.match(job.request.chain)
        job.computed_tokens = max(1, job.request.prompt_tokens - job.matched_blocks * self._block_tokens)
        self._prefilling, self._left = job, float(job.computed_tokens)

    def _first_token(self, job: Job, now: float) -> Job:
        self._prefilling, self._left = None, 0.0
        job.first_at = now
        self.work_tokens += job.computed_tokens
        stored, evicted = self.cache.insert(job.request.chain)
        held = self._journal.held
        held.update(dict.fromkeys(evicted, False))
        held.update((name, name in self.cache) for name in stored)
        heappush(self._decoding, (self._decoded + job.request.output_tokens - 1, job.number, job))
        return job
