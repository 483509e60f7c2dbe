"""REST: /api/v1/events, as a list or as a stream of server-sent events that resumes by Last-Event-ID."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream

from control_plane.db.bells import Bells
from control_plane.db.session import Database
from control_plane.errors import Invalid
from control_plane.events.schemas import Events, to_event, to_sse
from control_plane.events.service import list_events

MAX_ID = 2**63 - 1
KEEPALIVE_S = 15.0
PAGE = 500


class EventsController(Controller):
    """What happened to endpoints, replicas, nodes, models, jobs and keys."""

    path = "/api/v1/events"
    tags = ["events"]  # noqa: RUF012

    @get(opt={"scope": "read"}, summary="List or follow events")
    async def list(
        self,
        request: Request[Any, Any, Any],
        database: NamedDependency[Database],
        bells: NamedDependency[Bells],
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
        after: Annotated[int | None, QueryParameter(ge=0, le=MAX_ID)] = None,
        subject: Annotated[str | None, QueryParameter(max_length=200)] = None,
        follow: FromQuery[bool] = False,
    ) -> Response[Events] | Stream:
        """The last `limit` events, or the first `limit` after id `after`. With follow=true or `Accept:
        text/event-stream` these come as server-sent events, and new ones follow as they happen."""
        tenant_id = UUID(request.auth.tenant)
        follow = follow or "text/event-stream" in request.headers.get("accept", "")
        if follow:
            after = _resume_at(request.headers.get("last-event-id"), after)
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            stream = _follow(database, bells, tenant_id, limit, after, subject)
            return Stream(stream, media_type="text/event-stream", headers=headers)
        async with database.transaction() as session:
            rows = await list_events(session, tenant_id, limit=limit, after=after, subject=subject)
        return Response(Events([to_event(row) for row in rows]))


def _resume_at(header: str | None, after: int | None) -> int | None:
    if header is None or header == "":
        return after
    if not (header.isascii() and header.isdigit() and int(header) <= MAX_ID):
        raise Invalid(f"Last-Event-ID is '{header[:40]}'; it must be the id of an event.", "Last-Event-ID")
    return int(header)


async def _follow(
    database: NamedDependency[Database],
    bells: NamedDependency[Bells],
    tenant_id: UUID,
    limit: int,
    after: int | None,
    subject: str | None,
) -> AsyncGenerator[bytes]:
    yield b": events\n\n"
    with bells.listen("events") as listener:
        while not listener.closing:
            async with database.transaction() as session:
                page = limit if after is None else PAGE
                rows = await list_events(session, tenant_id, limit=page, after=after, subject=subject)
            for row in rows:
                yield to_sse(row)
            after = rows[-1].id if rows else after or 0
            if len(rows) < PAGE and not await listener.wait(KEEPALIVE_S):
                yield b": keep-alive\n\n"
