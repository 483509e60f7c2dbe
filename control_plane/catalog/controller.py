"""REST: /api/v1/models."""

from litestar import Controller, delete, get, post
from litestar.params import FromPath, JSONBody

from control_plane.catalog import artifacts, service
from control_plane.catalog.schemas import Model, ModelAccepted, Models, NewArtifact, NewModel, to_job, to_model
from control_plane.tenants.auth import ADMIN, READ, AuthRequest, RequestSession, tenant_of


class ModelsController(Controller):
    """The catalog of the caller's tenant."""

    path = "/api/v1/models"
    tags = ["models"]  # noqa: RUF012

    @post(opt=ADMIN, status_code=202, summary="Import a model")
    async def create(self, request: AuthRequest, session: RequestSession, data: JSONBody[NewModel]) -> ModelAccepted:
        """Answers at once; the job tells of the progress."""
        tenant_id = tenant_of(request)
        model, job = await service.add_model(session, tenant_id, data.name, data.source, data.quant, force=data.force)
        return ModelAccepted(to_model(model, ()), to_job(job))

    @post("/{name:str}/artifacts", opt=ADMIN, status_code=202, summary="Make another artifact of a model")
    async def quantize(
        self, request: AuthRequest, session: RequestSession, name: FromPath[str], data: JSONBody[NewArtifact]
    ) -> ModelAccepted:
        """Answers at once; the job tells of the progress. 409 where there is one already, but for force."""
        tenant_id = tenant_of(request)
        model = await service.ready_model(session, tenant_id, name)
        job = await artifacts.order(session, tenant_id, model, data.quant, force=data.force)
        made = await artifacts.artifacts_of(session, [model.id])
        return ModelAccepted(to_model(model, made[model.id]), to_job(job))

    @get(opt=READ, summary="List models")
    async def list(self, request: AuthRequest, session: RequestSession) -> Models:
        """All models, by name."""
        rows = await service.list_models(session, tenant_of(request))
        made = await artifacts.artifacts_of(session, [row.id for row in rows])
        return Models([to_model(row, made[row.id]) for row in rows])

    @get("/{name:str}", opt=READ, summary="Show a model")
    async def show(self, request: AuthRequest, session: RequestSession, name: FromPath[str]) -> Model:
        """One model, with all its artifacts."""
        row = await service.get_model(session, tenant_of(request), name)
        return to_model(row, (await artifacts.artifacts_of(session, [row.id]))[row.id])

    @delete("/{name:str}", opt=ADMIN, summary="Remove a model")
    async def remove(self, request: AuthRequest, session: RequestSession, name: FromPath[str]) -> None:
        """Refused while an endpoint uses it."""
        await service.remove_model(session, tenant_of(request), name)
