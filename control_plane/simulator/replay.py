"""The replay: a discrete-event simulation of gateways and replicas. Knows no policy and no file format.

Events are arrivals, replicas that have something to tell, and reports on their way. Gateways are told at once of what
passes through them (first tokens, ends), and of everything else by reports, `report_delay_s` late.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from random import Random

from control_plane.simulator.cache import BlockCache
from control_plane.simulator.policies import Fleet, Policy
from control_plane.simulator.replica import Job, Replica
from control_plane.simulator.settings import ReplicaSettings
from control_plane.simulator.workload import Workload
from data_plane.router.loads import Report

OnProgress = Callable[[int], None]
"""Told how many requests have ended."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is replayed on: so many replicas with so many blocks each, behind so many gateways.

    `is_pooled`: every replica may use the blocks of all, as with the ideal router.
    """

    replicas: int
    cache_blocks: int
    settings: ReplicaSettings
    gateways: int = 1
    report_delay_s: float = 0.0
    seed: int = 0
    is_pooled: bool = False

    def caches(self) -> list[BlockCache]:
        """One for each replica."""
        if self.is_pooled:
            return [BlockCache(self.replicas * self.cache_blocks)] * self.replicas
        return [BlockCache(self.cache_blocks) for _ in range(self.replicas)]


@dataclass(slots=True)
class Outcome:
    """What came of it: every job in the order of arrival, and what each replica did."""

    jobs: list[Job] = field(default_factory=list[Job])
    work_tokens: list[int] = field(default_factory=list[int])

    def check(self) -> None:
        """Every request ended once, after its first token; AssertionError where not."""
        for job in self.jobs:
            assert job.first_at is not None and job.ended_at is not None, f"request {job.number} never ended"
            assert job.arrived <= job.first_at <= job.ended_at, f"request {job.number} ended before it began"
        assert len({(job.session, job.at) for job in self.jobs}) == len(self.jobs), "a request ran twice"


def replay(
    workload: Workload, make_policy: Callable[[Fleet], Policy], setting: Setting, on_progress: OnProgress
) -> Outcome:
    """Run all of the workload; deterministic for one seed."""
    return _Replay(workload, make_policy, setting, on_progress).run()


@dataclass(slots=True)
class _News:
    replica: int
    report: Report
    stored: Sequence[int]
    evicted: Sequence[int]


class _Replay:
    def __init__(
        self, workload: Workload, make_policy: Callable[[Fleet], Policy], setting: Setting, on_progress: OnProgress
    ) -> None:
        ids = tuple(f"replica-{number:02}" for number in range(setting.replicas))
        fleet = Fleet(ids, setting.settings.batch, workload.block_tokens, workload.prefix_blocks)
        self._workload = workload
        self._setting = setting
        self._on_progress = on_progress
        self._policies = [make_policy(fleet) for _ in range(setting.gateways)]
        self._replicas = [Replica(setting.settings, workload.block_tokens, cache) for cache in setting.caches()]
        self._is_telling = [False] * len(ids)
        self._wake_at = [inf] * len(ids)
        self._random = Random(setting.seed)  # noqa: S311 # nothing here is a secret
        self._events: list[tuple[float, int, Callable[..., None], object]] = []
        self._count = 0
        self._ended = 0
        self._now = 0.0
        self._outcome = Outcome()

    def run(self) -> Outcome:
        for number, session in enumerate(self._workload.sessions):
            self._at(session.start_s, self._arrive, (number, 0))
        while self._events:
            self._now, _, happen, what = heappop(self._events)
            happen(what)
        for replica in self._replicas:
            replica.cache.check()
            assert not replica.in_flight, "a replica still has requests and nothing will happen"
        self._outcome.work_tokens = [replica.work_tokens for replica in self._replicas]
        self._outcome.check()
        return self._outcome

    def _at(self, time: float, happen: Callable[..., None], what: object) -> None:
        self._count += 1
        heappush(self._events, (time, self._count, happen, what))

    def _arrive(self, which: tuple[int, int]) -> None:
        number, at = which
        session = self._workload.sessions[number]
        jobs = self._outcome.jobs
        job = Job(len(jobs), number, at, session.requests[at], self._now)
        job.gateway = self._random.randrange(self._setting.gateways)
        jobs.append(job)
        job.replica = self._policies[job.gateway].pick(job, session, self._now)
        self._move(job.replica)
        self._replicas[job.replica].submit(job, self._now)
        self._watch(job.replica)

    def _due(self, at: int) -> None:
        """A replica said that it would have something to tell now; meanwhile that may have changed."""
        if self._wake_at[at] == self._now:
            self._wake_at[at] = inf
            self._move(at)
            self._watch(at)

    def _move(self, at: int) -> None:
        first, ended = self._replicas[at].advance(self._now)
        if first is not None:
            self._policies[first.gateway].answered(first, self._now)
        for job in ended:
            self._policies[job.gateway].ended(job, self._now)
            self._ended += 1
            self._on_progress(self._ended)
            session, after = self._workload.sessions[job.session], job.at + 1
            if after < len(session.requests):
                self._at(self._now + session.requests[after].think_s, self._arrive, (job.session, after))

    def _watch(self, at: int) -> None:
        """Something happened at a replica: it will tell of it."""
        self._expect(at)
        if not self._is_telling[at] and self._policies[0].listens:
            self._is_telling[at] = True
            self._at(self._now + self._setting.settings.report_every_s, self._tell, at)

    def _tell(self, at: int) -> None:
        self._is_telling[at] = False
        self._move(at)
        news = _News(at, *self._replicas[at].report())
        if news.report.pending_tokens:
            self._watch(at)
        else:
            self._expect(at)
        if self._setting.report_delay_s:
            self._at(self._now + self._setting.report_delay_s, self._hear, news)
        else:
            self._hear(news)

    def _expect(self, at: int) -> None:
        due = self._replicas[at].next_at()
        if due != self._wake_at[at] and due < inf:
            self._wake_at[at] = due
            self._at(due, self._due, at)

    def _hear(self, news: _News) -> None:
        for policy in self._policies:
            policy.reported(news.replica, news.report, news.stored, news.evicted, self._now)
