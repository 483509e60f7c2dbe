"""The gateways' side of endpoints: /internal/v1/gateway/state and /demand, and /internal/v1/endpoints/{id}/wake."""

from typing import Annotated
from uuid import UUID

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from control_plane.db.bells import Bells
from control_plane.db.long_poll import LONGEST_WAIT_S, until_changed
from control_plane.db.session import Database
from control_plane.endpoints import demand, routes, service
from control_plane.tenants.auth import NODE, RequestSession
from data_plane.wire.routes import DemandReport, GatewayState, WakeAnswer, WakeRequest


class GatewaysController(Controller):
    """What gateways ask and report."""

    path = "/internal/v1"
    tags = ["internal"]  # noqa: RUF012

    @get("/gateway/state", opt=NODE, summary="Routes and keys (long poll)")
    async def state(
        self,
        database: NamedDependency[Database],
        bells: NamedDependency[Bells],
        version: Annotated[str, QueryParameter(max_length=64)] = "",
        wait: Annotated[float, QueryParameter(ge=0, le=LONGEST_WAIT_S)] = 20.0,
    ) -> GatewayState:
        """As soon as its version is not `version`, or the same again after `wait` seconds."""
        topics = ("routes", "progress", "keys")
        return await until_changed(database, bells, topics, routes.gateway_state, version=version, wait_s=wait)

    @post("/gateway/demand", opt=NODE, status_code=204, summary="The work a gateway sees")
    async def demand(self, session: RequestSession, data: JSONBody[DemandReport]) -> None:
        """Replaces what this gateway said before of the endpoints it names."""
        await demand.note(session, data)

    @post("/endpoints/{endpoint_id:uuid}/wake", opt=NODE, status_code=200, summary="Wake an endpoint")
    async def wake(
        self, session: RequestSession, endpoint_id: FromPath[UUID], data: JSONBody[WakeRequest]
    ) -> WakeAnswer:
        """Any number of wakes start no more than one replica."""
        return await service.wake_by_id(session, endpoint_id, data.waiting, data.again_s)
