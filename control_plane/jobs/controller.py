"""REST: /api/v1/jobs."""

from typing import Annotated
from uuid import UUID

from litestar import Controller, get
from litestar.params import FromPath, QueryParameter

from control_plane.catalog.schemas import Job, Jobs, to_job
from control_plane.jobs import service
from control_plane.tenants.auth import READ, AuthRequest, RequestSession, tenant_of


class JobsController(Controller):
    """Long work of the caller's tenant."""

    path = "/api/v1/jobs"
    tags = ["jobs"]  # noqa: RUF012

    @get(opt=READ, summary="List jobs")
    async def list(
        self,
        request: AuthRequest,
        session: RequestSession,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    ) -> Jobs:
        """The newest first."""
        return Jobs([to_job(row) for row in await service.list_jobs(session, tenant_of(request), limit=limit)])

    @get("/{job_id:uuid}", opt=READ, summary="Show a job")
    async def show(self, request: AuthRequest, session: RequestSession, job_id: FromPath[UUID]) -> Job:
        """With its progress."""
        return to_job(await service.get_job(session, tenant_of(request), job_id))
