"""How much work each replica has: its last report, and what this gateway sent since that the report cannot know.

Knows nothing of HTTP or prefixes; time is an argument, in seconds of one monotonic clock.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field


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


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica has to do as this gateway sees it. Fields as in `Report`; `running` and `waiting` are None
    where it never reported."""

    in_flight: int = 0
    running: int | None = None
    waiting: int | None = None
    pending_tokens: int = 0
    kv_usage: float = 0.0
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None


@dataclass(eq=False, slots=True)
class _Replica:
    report: Report | None = None
    reported_at: float = 0.0
    open: dict[Hashable, tuple[float, int]] = field(default_factory=dict[Hashable, tuple[float, int]])


class Loads:
    """The work of all replicas. `sent`, `answered` and `ended` speak of one request of this gateway."""

    def __init__(self, report_lag_s: float = 1.0) -> None:
        self._lag_s = report_lag_s
        self._replicas: dict[str, _Replica] = {}

    def sent(self, replica_id: str, request: Hashable, new_tokens: int, now: float) -> None:
        """A request went there; about `new_tokens` of its prompt are not held there and have to be computed."""
        self._replicas.setdefault(replica_id, _Replica()).open[request] = (now, new_tokens)

    def answered(self, replica_id: str, request: Hashable) -> None:
        """Its first token came: its prompt is no longer work."""
        replica = self._replicas.get(replica_id)
        if replica is not None and request in replica.open:
            replica.open[request] = (replica.open[request][0], 0)

    def ended(self, replica_id: str, request: Hashable) -> None:
        """It is over, however it ended."""
        if (replica := self._replicas.get(replica_id)) is not None:
            replica.open.pop(request, None)

    def reported(self, replica_id: str, report: Report, now: float) -> None:
        """The replica told what it has to do. It may be as old as the lag: what was sent within it counts on top."""
        replica = self._replicas.setdefault(replica_id, _Replica())
        replica.report, replica.reported_at = report, now

    def forget(self, replica_id: str) -> None:
        """The replica is gone."""
        self._replicas.pop(replica_id, None)

    def of(self, replica_id: str) -> Load:
        """What the replica has to do now."""
        replica = self._replicas.get(replica_id)
        if replica is None:
            return Load()
        report = replica.report
        if report is None:
            return Load(len(replica.open), pending_tokens=sum(tokens for _, tokens in replica.open.values()))
        since = replica.reported_at - self._lag_s
        unknown = [tokens for sent, tokens in replica.open.values() if sent > since]
        return Load(
            in_flight=len(replica.open),
            running=report.running,
            waiting=report.waiting + len(unknown),
            pending_tokens=report.pending_tokens + sum(unknown),
            kv_usage=report.kv_usage,
            prefill_tokens_per_s=report.prefill_tokens_per_s,
            decode_tokens_per_s=report.decode_tokens_per_s,
        )
