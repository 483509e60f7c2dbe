"""Stores what gateways tell of requests, and reads it back. Never commits. Knows nothing of endpoints but their names,
which whoever calls it knows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID

import structlog
from sqlalchemy import Select, delete, func, inspect, literal, literal_column, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.usage.hours import Sums, sane
from control_plane.usage.packing import pack
from control_plane.usage.tables import UsageBlockTable, UsageHourTable, UsageSenderTable
from data_plane.wire.usage import UsageBatch, UsageRow

By = Literal["hour", "day", "endpoint", "key"]
Owner = tuple[UUID, str]
"""An endpoint's tenant and name."""

LATE = timedelta(days=2)
"""What a gateway tells later than that after it happened counts as if it were no older."""
CHUNK = 1000
"""Rows in one statement: PostgreSQL takes 65,535 values."""
SENDERS_KEPT_DAYS = 7
SUMMED = tuple(field.name for field in fields(Sums) if field.name != "first")

log = structlog.get_logger("control_plane.usage")


async def note(
    session: AsyncSession, gateway: str, batch: UsageBatch, owners: Mapping[str, Owner], now: datetime
) -> bool:
    """Stores a batch, once however often it comes; False where it was stored before. `owners` by endpoint id; what
    belongs to nobody is left out."""
    if not await _is_new(session, gateway, batch, now):
        return False
    earliest_ms, latest_ms = int((now - LATE).timestamp() * 1000), int(now.timestamp() * 1000)
    blocks: list[dict[str, Any]] = []
    hours: dict[tuple[UUID, str, datetime, str], Sums] = {}
    for told in batch.endpoints:
        owner = owners.get(told.endpoint_id)
        rows = sane(told.rows, earliest_ms, latest_ms)
        if owner is None or not rows:
            continue
        key_id = told.key_id[:200].replace("\0", "")
        blocks.append(_block(owner, key_id, rows))
        for row in rows:
            hour = _at(row.at_ms // 3_600_000 * 3_600_000)
            hours.setdefault((*owner, hour, key_id), Sums()).add(row)
    for at in range(0, len(blocks), CHUNK):
        await session.execute(insert(UsageBlockTable).values(blocks[at : at + CHUNK]))
    # in one order, so that the reports of several gateways do not block each other for good
    await _add(session, sorted(hours.items(), key=lambda each: each[0]))
    return True


async def _is_new(session: AsyncSession, gateway: str, batch: UsageBatch, now: datetime) -> bool:
    new = insert(UsageSenderTable).values(gateway=gateway, boot=batch.boot[:64], number=batch.number, heard_at=now)
    kept, came = UsageSenderTable, new.excluded
    written = await session.execute(
        new.on_conflict_do_update(
            index_elements=["gateway"],
            set_={"boot": came.boot, "number": came.number, "heard_at": came.heard_at},
            where=(kept.boot != came.boot) | (kept.number < came.number),
        ).returning(kept.gateway)
    )
    return written.first() is not None


def _block(owner: Owner, key_id: str, rows: list[UsageRow]) -> dict[str, Any]:
    times = [row.at_ms for row in rows]
    return {
        "tenant_id": owner[0],
        "endpoint": owner[1],
        "key_id": key_id,
        "first_at": _at(min(times)),
        "last_at": _at(max(times)),
        "requests": sum(row.count for row in rows),
        "packed": pack(rows),
    }


async def _add(session: AsyncSession, hours: Sequence[tuple[tuple[UUID, str, datetime, str], Sums]]) -> None:
    both = "unnest(usage_hours.first, excluded.first) with ordinality as both_(a, b, n)"
    first = literal_column(f"(select array_agg(coalesce(a, 0) + coalesce(b, 0) order by n) from {both})")  # noqa: S608
    for at in range(0, len(hours), CHUNK):
        rows = [
            {"tenant_id": tenant_id, "endpoint": endpoint, "hour": hour, "key_id": key_id, **asdict(sums)}
            for (tenant_id, endpoint, hour, key_id), sums in hours[at : at + CHUNK]
        ]
        new = insert(UsageHourTable).values(rows)
        summed: dict[str, Any] = {name: getattr(UsageHourTable, name) + new.excluded[name] for name in SUMMED}
        # of no rows there is no array, and both may be empty
        summed["first"] = func.coalesce(first, UsageHourTable.first)
        await session.execute(
            new.on_conflict_do_update(index_elements=["tenant_id", "endpoint", "hour", "key_id"], set_=summed)
        )


@dataclass(frozen=True)
class Span:
    """Which requests: of a tenant, of all its endpoints or of one, that came since a time and before another."""

    tenant_id: UUID
    endpoint: str | None
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Group:
    """Requests that are told as one. `at` is the beginning of their hour or day."""

    at: datetime | None
    endpoint: str
    key_id: str | None
    sums: Sums


async def sums(
    session: AsyncSession, span: Span, by: By, limit: int, after: tuple[datetime, str] | None = None
) -> list[Group]:
    """Sums of whole hours: the first `limit` groups behind the hour (or day) and endpoint `after`. By endpoint and by
    key there is no time to go on from."""
    at, names = _groups(by)
    keyed = [literal_column("at_"), UsageHourTable.endpoint]
    columns: list[Any] = [at, *names, *(func.sum(getattr(UsageHourTable, name)) for name in SUMMED)]
    query = _within(_select(columns), span)
    if after is not None and by in ("hour", "day"):
        query = query.where(tuple_(at.element, UsageHourTable.endpoint) > tuple_(literal(after[0]), literal(after[1])))
    ordered = query.group_by(literal_column("at_"), *names).order_by(*keyed, *names[1:]).limit(limit)
    found = [tuple(row) for row in await session.execute(ordered)]
    if not found:
        return []
    first = await _first(session, span, by, [row[0] for row in found if row[0] is not None])
    width = 1 + len(names)
    return [
        Group(
            row[0],
            row[1],
            row[2] if by == "key" else None,
            _sums(row[width:], first.get(row[:width], [])),
        )
        for row in found
    ]


def _select(columns: list[Any]) -> Select[Any]:
    """So many columns that their types are nobody's help."""
    return cast("Select[Any]", select(*columns))


def _sums(values: Sequence[Any], first: list[int]) -> Sums:
    facts: dict[str, Any] = {name: int(value) for name, value in zip(SUMMED, values, strict=True)}
    return Sums(**facts, first=first)


async def _first(session: AsyncSession, span: Span, by: By, times: list[datetime]) -> dict[tuple[Any, ...], list[int]]:
    """By group, how many streams had their first token within each class of times."""
    at, names = _groups(by)
    classes = func.unnest(UsageHourTable.first).table_valued("streams", with_ordinality="n", name="classes")
    classes = classes.render_derived()
    query = _within(_select([at, *names, classes.c.n, func.sum(classes.c.streams)]), span)
    query = query.select_from(UsageHourTable).join(classes, literal(True)).where(classes.c.streams > 0)
    if times:
        query = query.where(at.element >= min(times), at.element <= max(times))
    query = query.group_by(literal_column("at_"), *names, classes.c.n)
    counts: dict[tuple[Any, ...], list[int]] = {}
    for found in await session.execute(query):
        *group, number, streams = tuple(found)
        row = counts.setdefault(tuple(group), [])
        row += [0] * (number - len(row))
        row[number - 1] = int(streams)
    return counts


def _groups(by: By) -> tuple[Any, list[Any]]:
    """The beginning of a group's time, and what else it is told by."""
    at: Any = {
        "hour": UsageHourTable.hour,
        # the session's zone is UTC
        "day": func.date_trunc("day", UsageHourTable.hour),
    }.get(by, literal_column("null::timestamptz"))
    names = [UsageHourTable.endpoint, *([UsageHourTable.key_id] if by == "key" else [])]
    return at.label("at_"), names


def _within(query: Select[Any], span: Span) -> Select[Any]:
    query = query.where(
        UsageHourTable.tenant_id == span.tenant_id,
        UsageHourTable.hour > span.since - timedelta(hours=1),
        UsageHourTable.hour < span.until,
    )
    return query if span.endpoint is None else query.where(UsageHourTable.endpoint == span.endpoint)


async def blocks(session: AsyncSession, span: Span, after: int, limit: int) -> list[UsageBlockTable]:
    """Blocks with requests of the span, the first `limit` with an id beyond `after`."""
    query = select(UsageBlockTable).where(
        UsageBlockTable.tenant_id == span.tenant_id,
        UsageBlockTable.last_at >= span.since,
        UsageBlockTable.first_at < span.until,
        UsageBlockTable.id > after,
    )
    if span.endpoint is not None:
        query = query.where(UsageBlockTable.endpoint == span.endpoint)
    return list((await session.execute(query.order_by(UsageBlockTable.id).limit(limit))).scalars())


async def purge(session: AsyncSession, days: int, most: int) -> int:
    """Deletes what is older than so many days, `most` rows of each table at once; how many it deleted at most."""
    old = func.clock_timestamp() - timedelta(days=days)
    deleted = 0
    for table, column in ((UsageBlockTable, UsageBlockTable.last_at), (UsageHourTable, UsageHourTable.hour)):
        keys: list[Any] = list(inspect(table).primary_key)
        # whoever holds a row keeps it: the next round gets it
        oldest = select(*keys).where(column < old).order_by(column).limit(most).with_for_update(skip_locked=True)
        result: Any = await session.execute(
            delete(table).where(tuple_(*keys).in_(oldest)).execution_options(synchronize_session=False)
        )
        deleted = max(deleted, result.rowcount)
    forgotten = func.clock_timestamp() - timedelta(days=SENDERS_KEPT_DAYS)
    await session.execute(delete(UsageSenderTable).where(UsageSenderTable.heard_at < forgotten))
    return deleted


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
