"""How much work each replica has: its last report, and what this gateway sent since that the report cannot know.

Knows nothing of HTTP or prefixes; time is an argument, in seconds of one monotonic clock.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import exp

from data_plane.router.choose import Candidate

REPORT_LAG_S = 1.0
"""A report may be this old when it comes. What was sent within it is counted on top: rather twice than not at all."""


LATEST = 0.1
"""What the last answer took has this weight in what answers take."""
RECENT_S = 300.0
"""What was sent this long ago counts 1/e: as long as people and agents take between the requests of one session."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a runner says of itself: requests running and waiting, tokens of their prompts not computed yet, the share
    of its KV cache in use, and its measured rates (None before there are any)."""

    running: int
    waiting: int
    pending_tokens: int
    kv_usage: float
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


@dataclass(slots=True)
class _Sent:
    at: float
    tokens: int
    answered_at: float | None = None


@dataclass(eq=False, slots=True)
class _Replica:
    candidate: Candidate
    report: Report | None = None
    since: float = 0.0
    open: dict[Hashable, _Sent] = field(default_factory=dict[Hashable, _Sent])
    unknown: int = 0
    """Of those that are open, how many the report cannot know; without one, all."""
    unknown_tokens: int = 0

    def add(self, request: Hashable, sent: _Sent) -> None:
        """One more is open; later than all others, so that no report knows it."""
        self.open[request] = sent
        self._count(sent, 1, sent.tokens)

    def drop(self, request: Hashable, now: float) -> None:
        """It is over, if it was open."""
        if (sent := self.open.pop(request, None)) is not None:
            if sent.answered_at is not None:
                took_s, before_s = now - sent.answered_at, self.candidate.answer_s
                self.candidate.answer_s = took_s if before_s is None else before_s + LATEST * (took_s - before_s)
            self._count(sent, -1, -sent.tokens)

    def begin(self, request: Hashable, now: float) -> None:
        """Its prompt is computed, if it is open."""
        if (sent := self.open.get(request)) is not None:
            tokens, sent.tokens, sent.answered_at = sent.tokens, 0, now
            self._count(sent, 0, -tokens)

    def recount(self) -> None:
        """After another report, or none any more: which ones it cannot know."""
        unknown = [sent for sent in self.open.values() if self.report is None or sent.at > self.since]
        self.unknown, self.unknown_tokens = len(unknown), sum(sent.tokens for sent in unknown)
        self._tell()

    def _count(self, sent: _Sent, requests: int, tokens: int) -> None:
        if self.report is None or sent.at > self.since:
            self.unknown += requests
            self.unknown_tokens += tokens
        self._tell()

    def _tell(self) -> None:
        """Make the candidate say what is known: the report and what was sent after it; without one, what is open."""
        one, report = self.candidate, self.report
        one.in_flight, one.pending_tokens = len(self.open), self.unknown_tokens
        if report is not None:
            one.running, one.waiting = report.running, report.waiting + self.unknown
            one.pending_tokens += report.pending_tokens
            one.kv_usage = report.kv_usage
            one.prefill_tokens_per_s, one.decode_tokens_per_s = report.prefill_tokens_per_s, report.decode_tokens_per_s
        one.weigh()


class Loads:
    """The work of all replicas of an endpoint. `sent`, `answered` and `ended` speak of one request of this gateway."""

    def __init__(self, report_lag_s: float = REPORT_LAG_S) -> None:
        self._lag_s = report_lag_s
        self._decayed_at = 0.0
        self._replicas: dict[str, _Replica] = {}

    def sent(self, replica_id: str, request: Hashable, new_tokens: int, now: float) -> None:
        """A request went there; about `new_tokens` of its prompt are not held there and have to be computed."""
        replica = self._replica(replica_id)
        self._decay(now)
        replica.candidate.recent_tokens += new_tokens
        replica.add(request, _Sent(now, new_tokens))

    def answered(self, replica_id: str, request: Hashable, now: float) -> None:
        """Its first token came: its prompt is no longer work."""
        if (replica := self._replicas.get(replica_id)) is not None:
            replica.begin(request, now)

    def ended(self, replica_id: str, request: Hashable, now: float) -> None:
        """It is over, however it ended."""
        if (replica := self._replicas.get(replica_id)) is not None:
            replica.drop(request, now)

    def reported(self, replica_id: str, report: Report, now: float) -> None:
        """The replica told what it has to do."""
        replica = self._replica(replica_id)
        replica.report, replica.since = report, now - self._lag_s
        replica.recount()

    def silent(self, replica_id: str) -> None:
        """The replica's reports stopped coming: from now on only what this gateway has there is known."""
        if (replica := self._replicas.get(replica_id)) is not None:
            replica.report, before = None, replica.candidate
            replica.candidate = Candidate(
                replica_id, before.slots, 0, recent_tokens=before.recent_tokens, answer_s=before.answer_s
            )
            replica.recount()

    def forget(self, replica_id: str) -> None:
        """The replica is gone."""
        self._replicas.pop(replica_id, None)

    def candidate(self, replica_id: str, slots: int) -> Candidate:
        """The replica as `choose` wants it. One object for its life, kept up to date: do not keep or change it."""
        candidate = self._replica(replica_id).candidate
        if candidate.slots != slots:
            candidate.slots = slots
            candidate.weigh()
        return candidate

    def _decay(self, now: float) -> None:
        """Once a second, so that all replicas' recent tokens are of the same time."""
        passed = now - self._decayed_at
        if passed < 1.0:
            return
        self._decayed_at = now
        for replica in self._replicas.values():
            replica.candidate.recent_tokens *= exp(-passed / RECENT_S)
            replica.candidate.weigh()

    def _replica(self, replica_id: str) -> _Replica:
        replica = self._replicas.get(replica_id)
        if replica is None:
            replica = self._replicas[replica_id] = _Replica(Candidate(replica_id, 1, 0))
        return replica
