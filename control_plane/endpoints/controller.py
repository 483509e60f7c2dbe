"""REST: /api/v1/endpoints and /api/v1/replicas."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.session import Database
from control_plane.endpoints import logs, replicas, service
from control_plane.endpoints.life import Held
from control_plane.endpoints.logs import LogSource
from control_plane.endpoints.schemas import Endpoint, Endpoints, NewEndpoint, Replicas, Scale, to_endpoint
from control_plane.settings import Settings
from control_plane.tenants.auth import ADMIN, READ, AuthRequest, RequestSession, tenant_of

Tail = Annotated[int, QueryParameter(ge=0, le=10_000)]


class EndpointsController(Controller):
    """Endpoints of the caller's tenant."""

    path = "/api/v1/endpoints"
    tags = ["endpoints"]  # noqa: RUF012

    @post(opt=ADMIN, summary="Deploy an endpoint, or a new revision of it")
    async def deploy(
        self,
        request: AuthRequest,
        session: RequestSession,
        settings: NamedDependency[Settings],
        data: JSONBody[NewEndpoint],
    ) -> Response[Endpoint]:
        """201 with the new endpoint; 200 where the name existed: it keeps serving while the new revision starts."""
        held, is_new = await service.deploy(session, tenant_of(request), data)
        return Response(await _shown(session, held, settings), status_code=201 if is_new else 200)

    @get(opt=READ, summary="List endpoints")
    async def list(
        self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings]
    ) -> Endpoints:
        """All endpoints, by name."""
        rows = await service.list_endpoints(session, tenant_of(request))
        alive = await service.alive_replicas(session, [row.id for row in rows])
        specs = await service.specs(session, rows)
        plans = await service.idle_plans(session, rows)
        url = settings.gateway_url
        return Endpoints([to_endpoint(row, alive[row.id], specs[row.id], url, plans.get(row.id)) for row in rows])

    @get("/{name:str}", opt=READ, summary="Show an endpoint")
    async def show(
        self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings], name: FromPath[str]
    ) -> Endpoint:
        """One endpoint."""
        row = await service.find(session, tenant_of(request), name)
        alive = await service.alive_replicas(session, [row.id])
        spec, plans = (await service.specs(session, [row]))[row.id], await service.idle_plans(session, [row])
        return to_endpoint(row, alive[row.id], spec, settings.gateway_url, plans.get(row.id))

    @patch("/{name:str}", opt=ADMIN, summary="Change an endpoint's limits")
    async def scale(
        self,
        request: AuthRequest,
        session: RequestSession,
        settings: NamedDependency[Settings],
        name: FromPath[str],
        data: JSONBody[Scale],
    ) -> Endpoint:
        """What is left out stays as it is."""
        return await _shown(session, await service.scale(session, tenant_of(request), name, data), settings)

    @delete("/{name:str}", opt=ADMIN, summary="Remove an endpoint")
    async def remove(self, request: AuthRequest, session: RequestSession, name: FromPath[str]) -> None:
        """Its URL answers 404 at once; its replicas finish what they have."""
        await service.remove(session, tenant_of(request), name)

    @post("/{name:str}/wake", opt=ADMIN, status_code=202, summary="Wake an endpoint")
    async def wake(
        self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings], name: FromPath[str]
    ) -> Endpoint:
        """As a request would; 409 where it cannot start now."""
        return await _shown(session, await service.wake_by_name(session, tenant_of(request), name), settings)

    @post("/{name:str}/sleep", opt=ADMIN, status_code=202, summary="Put an endpoint to sleep")
    async def sleep(
        self, request: AuthRequest, session: RequestSession, settings: NamedDependency[Settings], name: FromPath[str]
    ) -> Endpoint:
        """Its replicas finish what they have and end; the next request wakes it. 409 where its min is not 0."""
        return await _shown(session, await service.sleep_by_name(session, tenant_of(request), name), settings)

    @get("/{name:str}/logs", opt=READ, summary="Read the logs of an endpoint's replicas")
    async def logs(
        self,
        request: AuthRequest,
        database: NamedDependency[Database],
        name: FromPath[str],
        tail: Tail = 200,
        follow: FromQuery[bool] = False,
    ) -> Stream:
        """Text, newest replica last; with follow=true it goes on as the newest replica writes."""
        async with database.transaction() as session:
            sources = await replicas.log_sources(session, tenant_of(request), name)
        return _text(sources, tail, follow)


class ReplicasController(Controller):
    """Replicas of the caller's endpoints."""

    path = "/api/v1/replicas"
    tags = ["replicas"]  # noqa: RUF012

    @get(opt=READ, summary="List replicas")
    async def list(
        self,
        request: AuthRequest,
        session: RequestSession,
        endpoint: Annotated[str | None, QueryParameter(max_length=200)] = None,
    ) -> Replicas:
        """Newest first, ended ones too."""
        return Replicas(await replicas.list_replicas(session, tenant_of(request), endpoint))

    @get("/{replica_id:uuid}/logs", opt=READ, summary="Read a replica's log")
    async def logs(
        self,
        request: AuthRequest,
        database: NamedDependency[Database],
        replica_id: FromPath[UUID],
        tail: Tail = 200,
        follow: FromQuery[bool] = False,
    ) -> Stream:
        """Text; the node keeps the logs of replicas that ended for a while."""
        async with database.transaction() as session:
            source = await replicas.log_source(session, tenant_of(request), replica_id)
        return _text([source], tail, follow)


async def _shown(session: AsyncSession, held: Held, settings: Settings) -> Endpoint:
    row = held.endpoint
    spec: dict[str, Any] = (await service.specs(session, [row]))[row.id]
    plans = await service.idle_plans(session, [row])
    return to_endpoint(row, held.replicas, spec, settings.gateway_url, plans.get(row.id))


def _text(sources: list[LogSource], tail: int, follow: bool) -> Stream:
    headers = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
    return Stream(logs.stream(sources, tail, follow), media_type="text/plain; charset=utf-8", headers=headers)
