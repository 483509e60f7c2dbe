"""The control plane's application: the only file that knows every controller and every loop."""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ControllerRouterHandler
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import telemetry
from control_plane.autoscaler.loop import AutoscalerLoop
from control_plane.catalog.controller import ModelsController
from control_plane.db.bells import Bells
from control_plane.db.bulkhead import Bulkhead
from control_plane.db.loop import Leader, Loop
from control_plane.db.metrics import STORE
from control_plane.db.session import Database
from control_plane.decisions.controller import DecisionsController
from control_plane.dispatch.controller import AgentsController, NodesController
from control_plane.dispatch.loop import DispatchLoop
from control_plane.dispatch.service import ReportOrder
from control_plane.endpoints.controller import EndpointsController, ReplicasController
from control_plane.endpoints.gateway_controller import GatewaysController
from control_plane.endpoints.metrics import FLEET
from control_plane.endpoints.starts import StartsController
from control_plane.errors import DatabaseUnavailable, answer_for
from control_plane.events.controller import EventsController
from control_plane.jobs.canary import CanaryLoop
from control_plane.jobs.controller import JobsController
from control_plane.jobs.loop import JobsLoop, LazyHints
from control_plane.jobs.sender import Sender
from control_plane.nodes.callers import Callers
from control_plane.nodes.controller import RegistrationController, TokensController
from control_plane.nodes.lease import LeaseTerms
from control_plane.nodes.metrics import NODES
from control_plane.placement.controller import ExplainController
from control_plane.placement.loop import PlacementLoop
from control_plane.settings import Settings
from control_plane.tenants.auth import MACHINES, OPEN, READ, KeyCache, require_scope
from control_plane.tenants.controller import KeysController
from control_plane.tenants.door import Door
from control_plane.usage.controller import UsageController
from control_plane.usage.loop import UsageLoop
from data_plane.wire.errors import ApiError

VERSION = "0.1.0"
MAX_BODY_BYTES = 4 * 2**20

CONTROLLERS: list[ControllerRouterHandler] = [
    *(ModelsController, JobsController, KeysController, EventsController, DecisionsController, UsageController),
    *(EndpointsController, ExplainController, ReplicasController, StartsController, NodesController),
    *(GatewaysController, AgentsController, RegistrationController, TokensController),
]


def loops(settings: Settings, bells: Bells) -> list[Loop]:
    """What runs while this process leads."""
    hints, sender = LazyHints(settings), Sender()
    others: list[Loop] = [JobsLoop(hints, sender), CanaryLoop(hints, sender, bells), UsageLoop(settings.usage_days)]
    return [*others, AutoscalerLoop(), PlacementLoop(), DispatchLoop(LeaseTerms(settings.lease_s))]


@get("/healthz", opt=OPEN, include_in_schema=False)
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@get("/readyz", opt=OPEN, include_in_schema=False)
async def readyz(database: NamedDependency[Database]) -> dict[str, str]:
    """The database answers; 503 otherwise."""
    try:
        await database.ping()
    except Exception as error:  # drivers and pools fail in many ways: whichever it was, it is not ready
        raise DatabaseUnavailable from error
    return {"status": "ready"}


@get("/", opt=READ, include_in_schema=False)
async def index(settings: NamedDependency[Settings]) -> dict[str, str]:
    """What this is."""
    return {"name": "ebb", "version": VERSION, "gateway": settings.gateway_url, "schema": "/schema"}


@get("/metrics", opt=READ, include_in_schema=False)
async def metrics(metrics_of_app: NamedDependency[telemetry.Metrics]) -> Response[bytes]:
    """Prometheus text."""
    return Response(metrics_of_app.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def create_app(settings: Settings, *, extra_loops: Sequence[Loop] = (), leads: bool = True) -> Litestar:
    """The application. Its database, bells and loops start and end with its lifespan; `leads=False`: no loops."""
    bells = Bells(settings.database_url)
    database = Database(settings.database_url, rung=bells.rung_here, origin=bells.origin)
    people = Bulkhead()
    keys = KeyCache(database, bells)
    leader = Leader(database, bells, settings.instance, [*loops(settings, bells), *extra_loops])
    measured = telemetry.Metrics(leader)
    measured.registry.register(FLEET)
    measured.registry.register(NODES)
    measured.registry.register(STORE)
    report_order = ReportOrder()

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        await bells.start()
        if leads:
            leader.start()
        try:
            yield
        finally:
            bells.hush()
            await leader.stop()
            await bells.stop()
            keys.close()
            await database.close()

    async def provide_session(request: Request[Any, Any, Any]) -> AsyncGenerator[AsyncSession]:
        """One transaction per request: it commits after the handler and before the answer, or rolls back. Where the
        database is slow, people wait and are sent away first: agents and gateways find a connection all the same."""
        of_machines = request.route_handler.opt.get("scope") in MACHINES
        async with contextlib.nullcontext() if of_machines else people.place(), database.transaction() as session:
            yield session

    app = Litestar(
        route_handlers=[healthz, readyz, index, metrics, *CONTROLLERS],
        guards=[require_scope],
        dependencies={
            "session": Provide(provide_session),
            "database": Provide(lambda: database, sync_to_thread=False),
            "bells": Provide(lambda: bells, sync_to_thread=False),
            "settings": Provide(lambda: settings, sync_to_thread=False),
            "report_order": Provide(lambda: report_order, sync_to_thread=False),
            "metrics_of_app": Provide(lambda: measured, sync_to_thread=False),
        },
        exception_handlers={Exception: render},
        lifespan=[lifespan],
        openapi_config=_openapi(),
        request_max_body_size=MAX_BODY_BYTES,
        state=State({"bells": bells}),
        logging_config=None,
        pdb_on_exception=False,
        debug=False,
    )
    app.asgi_handler = Door(app.asgi_handler, Callers(database, keys).authenticate, measured.observe)
    return app


def render(_: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """The one handler of errors: every one is answered in the wire's shape."""
    answer = answer_for(error)
    return Response(answer.encode(), status_code=answer.status, headers=answer.headers, media_type="application/json")


def _in_shape(response: Response[Any]) -> Response[Any]:
    """Litestar answers unknown paths below /schema with a page of HTML of its own."""
    if response.status_code != 404:
        return response
    error = ApiError(404, "There is nothing at this address. GET /schema lists what there is.", code="not_found")
    return Response(error.encode(), status_code=404, media_type="application/json")


def _openapi() -> OpenAPIConfig:
    bearer = SecurityScheme(type="http", scheme="bearer", description="An API key, `prefix.secret`.")
    return OpenAPIConfig(
        title="Ebb",
        version=VERSION,
        description="Serverless model endpoints: a URL that sleeps at zero and wakes on a request.",
        components=Components(security_schemes={"key": bearer}),
        security=[{"key": []}],
        use_handler_docstrings=True,
        openapi_router=Router("/schema", route_handlers=[], opt=READ, include_in_schema=False, after_request=_in_shape),
        render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"], media_type="application/json")],  # type: ignore
    )
