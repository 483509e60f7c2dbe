"""Sums over requests, and what can be read off them: times to the first token are counted by classes, so that those of
many hours and gateways can be added. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from data_plane.wire.usage import BOUNDS_MS, ENDINGS, Ending, UsageRow, time_class

REFUSED: frozenset[Ending] = frozenset({"client_error"})
FAILED: frozenset[Ending] = frozenset({"error", "interrupted"})
CLASSES = len(BOUNDS_MS) + 1
MOST = 2**31 - 1


@dataclass(slots=True)
class Sums:
    """Of requests that belong together; the fields are the columns of `usage_hours`."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    cold: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    duration_ms: int = 0
    first: list[int] = field(default_factory=list[int])

    def add(self, row: UsageRow) -> None:
        """One row more."""
        count, ending = row.count, ENDINGS[row.ending]
        self.requests += count
        self.refused += count if ending in REFUSED else 0
        self.failed += count if ending in FAILED else 0
        self.cancelled += count if ending == "cancelled" else 0
        self.cold += count if row.is_cold else 0
        self.prompt_tokens += row.prompt
        self.cached_tokens += row.cached
        self.completion_tokens += row.completion
        self.duration_ms += row.ms
        if row.first_ms >= 0:
            at = time_class(row.first_ms / count)
            self.first += [0] * (at + 1 - len(self.first))
            self.first[at] += count


def sane(rows: Iterable[UsageRow], earliest_ms: int, latest_ms: int) -> list[UsageRow]:
    """The rows with times within bounds (clocks differ) and no number that is none; those without a request are left
    out."""
    kept: list[UsageRow] = []
    for row in rows:
        if not 0 < row.count <= MOST:
            continue
        row.at_ms = min(latest_ms, max(earliest_ms, row.at_ms))
        row.ending = row.ending if 0 <= row.ending < len(ENDINGS) else ENDINGS.index("error")
        row.first_ms = min(MOST * row.count, max(-1, row.first_ms))
        for name in ("ms", "prompt", "cached", "completion"):
            setattr(row, name, min(MOST * row.count, max(0, cast("int", getattr(row, name)))))
        kept.append(row)
    return kept


def percentile_ms(first: Sequence[int], share: float) -> float | None:
    """The time within which that share of the streams had their first token, off by a tenth at most; None without any.
    Within a class times are taken to be spread evenly."""
    wanted = share * sum(first)
    if wanted <= 0:
        return None
    past = 0
    for at, count in enumerate(first):
        if past + count >= wanted:
            high = BOUNDS_MS[min(at, len(BOUNDS_MS) - 1)]
            low = BOUNDS_MS[at - 1] if at else 0.0
            return round(min(low, high) + max(0.0, high - low) * (wanted - past) / count, 3)
        past += count
    return None
