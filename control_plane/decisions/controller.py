"""REST: /api/v1/decisions."""

from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import Controller, Request, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.decisions import service
from control_plane.decisions.schemas import Decision, Decisions, to_decision

Asking = Request[Any, Any, Any]


class DecisionsController(Controller):
    """What was decided on the caller's endpoints: scale, place, evict, wake, sleep."""

    path = "/api/v1/decisions"
    tags = ["decisions"]  # noqa: RUF012

    @get(opt={"scope": "read"}, summary="List decisions")
    async def list(
        self,
        request: Asking,
        session: NamedDependency[AsyncSession],
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 50,
        subject: Annotated[str | None, QueryParameter(max_length=200)] = None,
        kind: FromQuery[Literal["scale", "place", "evict", "wake", "sleep"] | None] = None,
        whole: FromQuery[bool] = False,
    ) -> Decisions:
        """The last ones, oldest first; with whole=true each with what it was made from."""
        rows = await service.list_decisions(session, UUID(request.auth.tenant), subject=subject, kind=kind, limit=limit)
        return Decisions([to_decision(row, whole=whole) for row in rows])

    @get("/{decision_id:int}", opt={"scope": "read"}, summary="Show a decision")
    async def show(
        self, request: Asking, session: NamedDependency[AsyncSession], decision_id: FromPath[int]
    ) -> Decision:
        """One decision, with what it was made from."""
        return to_decision(await service.find(session, UUID(request.auth.tenant), min(decision_id, 2**62)), whole=True)
