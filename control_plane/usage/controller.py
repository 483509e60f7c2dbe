"""REST: /api/v1/usage, what requests used: summed, or one by one."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from litestar import Controller, get
from litestar.params import FromQuery, QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.base import iso
from control_plane.db.clock import db_now
from control_plane.errors import Invalid
from control_plane.tenants.auth import READ, AuthRequest, RequestSession, tenant_of
from control_plane.usage import service
from control_plane.usage.schemas import UsageBlocks, Usages, to_block, to_usage
from control_plane.usage.service import By, Span

MAX_ID = 2**63 - 1
MOST_GROUPS = 5000
MOST_BLOCKS = 1000
FIRST_YEAR, LAST_YEAR = 1970, 2999
WEEK = timedelta(days=7)

Name = Annotated[str | None, QueryParameter(max_length=200)]
Moment = FromQuery[datetime | None]


class UsageController(Controller):
    """What requests to the caller's endpoints used. It is told some seconds after they have ended."""

    path = "/api/v1/usage"
    tags = ["usage"]  # noqa: RUF012

    @get(opt=READ, summary="Sum up requests by hour, day, endpoint or key")
    async def list(
        self,
        request: AuthRequest,
        session: RequestSession,
        endpoint: Name = None,
        since: Moment = None,
        until: Moment = None,
        by: FromQuery[By] = "hour",
        limit: Annotated[int, QueryParameter(ge=1, le=MOST_GROUPS)] = 1000,
        after: Annotated[str | None, QueryParameter(max_length=300)] = None,
    ) -> Usages:
        """Of whole hours: from that of `since` (else a week ago) to that before `until` (else now), oldest first. Where
        there is more than `limit`, `next` is what to say as `after`."""
        span = await _span(session, tenant_of(request), endpoint, since, until)
        groups = await service.sums(session, span, by, limit, None if after is None else _cursor(after, by))
        last = groups[-1] if len(groups) == limit and by in ("hour", "day") else None
        return Usages([to_usage(each) for each in groups], None if last is None else f"{iso(last.at)}/{last.endpoint}")

    @get("/requests", opt=READ, summary="List requests one by one")
    async def requests(
        self,
        request: AuthRequest,
        session: RequestSession,
        endpoint: Name = None,
        since: Moment = None,
        until: Moment = None,
        limit: Annotated[int, QueryParameter(ge=1, le=MOST_BLOCKS)] = 200,
        after: Annotated[int, QueryParameter(ge=0, le=MAX_ID)] = 0,
    ) -> UsageBlocks:
        """In blocks, as gateways told of them; `limit` blocks at most. Those of a block may lie before `since` or
        behind `until`: others of it do not."""
        span = await _span(session, tenant_of(request), endpoint, since, until)
        blocks = await service.blocks(session, span, after, limit)
        return UsageBlocks([to_block(row) for row in blocks], blocks[-1].id if len(blocks) == limit else None)


async def _span(
    session: AsyncSession, tenant_id: UUID, endpoint: str | None, since: datetime | None, until: datetime | None
) -> Span:
    now = await db_now(session)
    since, until = _moment(since, "since"), _moment(until, "until")
    until = until or now + timedelta(hours=1)
    since = since or min(now, until) - WEEK
    if since >= until:
        raise Invalid(f"'since' ({iso(since)}) must lie before 'until' ({iso(until)}).", "since")
    return Span(tenant_id, endpoint, since, until)


def _moment(moment: datetime | None, param: str) -> datetime | None:
    """With a zone, by default UTC. Raises Invalid for years that arithmetic leads out of what there is."""
    if moment is None:
        return None
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise Invalid(f"'{param}' must lie between the years {FIRST_YEAR} and {LAST_YEAR}, not {moment.year}.", param)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _cursor(after: str, by: By) -> tuple[datetime, str]:
    moment, slash, endpoint = after.partition("/")
    try:
        at = _moment(datetime.fromisoformat(moment), "after")
    except ValueError:
        at = None
    if at is None or not slash or by not in ("hour", "day"):
        raise Invalid(f"'after' is '{after[:60]}'; it must be the 'next' of a list by hour or by day.", "after")
    return at, endpoint
