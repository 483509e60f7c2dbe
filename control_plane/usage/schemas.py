"""What the REST API gives for usage."""

import msgspec

from control_plane.db.base import iso
from control_plane.usage.hours import percentile_ms
from control_plane.usage.packing import unpack
from control_plane.usage.service import Group
from control_plane.usage.tables import UsageBlockTable
from data_plane.wire.usage import ENDINGS, UsageRow

COLUMNS = UsageRow.__struct_fields__


class Usage(msgspec.Struct, frozen=True):
    """Requests to an endpoint: of the hour or the day that begins at `at`, or of the whole time that was asked for.
    `key` is set where they are told by key. `refused`: for what was wrong with them. `cold`: they had to wait for a
    replica to start; `cold_share` is of those that were not refused. `ttft_*_ms`: of streams, null without any."""

    endpoint: str
    key: str | None
    at: str | None
    requests: int
    refused: int
    failed: int
    cancelled: int
    cold: int
    cold_share: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    mean_ms: float
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None


class Usages(msgspec.Struct, frozen=True):
    """A list of usage. `next`: what to say as `after` for those behind it; null where there is no more."""

    items: list[Usage]
    next: str | None = None


class UsageBlock(msgspec.Struct, frozen=True):
    """Requests with one key to one endpoint, each with the numbers that `columns` names. `ending` is the place of its
    word in `endings`; `is_cold` 0 or 1; a row with a `count` above 1 is so many alike ones, and their sums."""

    id: int
    endpoint: str
    key: str
    requests: list[list[int]]


class UsageBlocks(msgspec.Struct, frozen=True):
    """Single requests, in the order in which they were told. `next`: what to say as `after` for those behind them."""

    items: list[UsageBlock]
    next: int | None
    columns: tuple[str, ...] = COLUMNS
    endings: tuple[str, ...] = ENDINGS


def to_usage(group: Group) -> Usage:
    """The sums as they are told."""
    sums = group.sums
    accepted = sums.requests - sums.refused
    return Usage(
        endpoint=group.endpoint,
        key=group.key_id,
        at=iso(group.at),
        requests=sums.requests,
        refused=sums.refused,
        failed=sums.failed,
        cancelled=sums.cancelled,
        cold=sums.cold,
        cold_share=round(sums.cold / accepted, 6) if accepted > 0 else None,
        prompt_tokens=sums.prompt_tokens,
        cached_tokens=sums.cached_tokens,
        completion_tokens=sums.completion_tokens,
        mean_ms=round(sums.duration_ms / sums.requests, 3) if sums.requests else 0.0,
        ttft_p50_ms=percentile_ms(sums.first, 0.5),
        ttft_p95_ms=percentile_ms(sums.first, 0.95),
    )


def to_block(row: UsageBlockTable) -> UsageBlock:
    """The block, unpacked."""
    rows = [[int(value) for value in msgspec.structs.astuple(each)] for each in unpack(row.packed)]
    return UsageBlock(row.id, row.endpoint, row.key_id, rows)
