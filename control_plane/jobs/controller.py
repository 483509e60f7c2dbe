"""REST: /api/v1/jobs."""

from typing import Annotated
from uuid import UUID

from litestar import Controller, get
from litestar.params import Parameter
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.catalog.schemas import Job, Jobs, to_job
from control_plane.jobs import service
from control_plane.tenants.auth import READ, AuthRequest, tenant_of


class JobsController(Controller):
    """Long work of the caller's tenant."""

    path = "/api/v1/jobs"
    tags = ["jobs"]  # noqa: RUF012

    @get(opt=READ, summary="List jobs")
    async def list(
        self, request: AuthRequest, session: AsyncSession, limit: Annotated[int, Parameter(ge=1, le=1000)] = 100
    ) -> Jobs:
        """The newest first."""
        return Jobs([to_job(row) for row in await service.list_jobs(session, tenant_of(request), limit=limit)])

    @get("/{job_id:uuid}", opt=READ, summary="Show a job")
    async def show(self, request: AuthRequest, session: AsyncSession, job_id: UUID) -> Job:
        """With its progress."""
        return to_job(await service.get_job(session, tenant_of(request), job_id))
