"""REST: /api/v1/models."""

from litestar import Controller, delete, get, post
from litestar.params import FromPath, JSONBody

from control_plane.catalog import service
from control_plane.catalog.schemas import Model, ModelAccepted, Models, NewModel, to_job, to_model
from control_plane.tenants.auth import ADMIN, READ, AuthRequest, RequestSession, tenant_of


class ModelsController(Controller):
    """The catalog of the caller's tenant."""

    path = "/api/v1/models"
    tags = ["models"]  # noqa: RUF012

    @post(opt=ADMIN, status_code=202, summary="Import a model")
    async def create(self, request: AuthRequest, session: RequestSession, data: JSONBody[NewModel]) -> ModelAccepted:
        """Answers at once; the job tells of the progress."""
        model, job = await service.add_model(session, tenant_of(request), data.name, data.source)
        return ModelAccepted(to_model(model), to_job(job))

    @get(opt=READ, summary="List models")
    async def list(self, request: AuthRequest, session: RequestSession) -> Models:
        """All models, by name."""
        return Models([to_model(row) for row in await service.list_models(session, tenant_of(request))])

    @get("/{name:str}", opt=READ, summary="Show a model")
    async def show(self, request: AuthRequest, session: RequestSession, name: FromPath[str]) -> Model:
        """One model."""
        return to_model(await service.get_model(session, tenant_of(request), name))

    @delete("/{name:str}", opt=ADMIN, summary="Remove a model")
    async def remove(self, request: AuthRequest, session: RequestSession, name: FromPath[str]) -> None:
        """Refused while an endpoint uses it."""
        await service.remove_model(session, tenant_of(request), name)
