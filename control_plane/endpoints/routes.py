"""What gateways are sent: every endpoint, the replicas that serve it, and the keys. Knows nothing of long polls."""

import hashlib

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.clock import unix
from control_plane.endpoints import demand, life, service
from control_plane.endpoints.slo import Slo
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.states import is_coming, serves, waking_phase
from control_plane.endpoints.tables import CURRENT_REVISION, EndpointTable, ReplicaTable, RevisionTable
from control_plane.tenants.service import key_records
from data_plane.wire.keys import KeyRecord
from data_plane.wire.routes import CAPACITY, EndpointRoute, EndpointState, GatewayState, ReplicaRoute

_ENDPOINTS = (
    select(EndpointTable, RevisionTable.spec, func.clock_timestamp(), demand.gateways())
    .join(RevisionTable, CURRENT_REVISION)
    .where(EndpointTable.deleted_at.is_(None))
    .order_by(EndpointTable.id)
)


async def gateway_state(session: AsyncSession) -> GatewayState:
    """All that a gateway needs. The version is a digest of what matters, so the same facts have the same version,
    whichever process is asked; `eta_s`, which runs with the clock, is left out of it."""
    # read with each change of any endpoint, while requests wait for one: three queries
    found = list(await session.execute(_ENDPOINTS))
    alive = await service.alive_replicas(session, [row.id for row, *_ in found])
    routes = tuple(
        _route(row, alive[row.id], msgspec.convert(spec, RevisionSpec).context, now.timestamp())
        for row, spec, now, _ in found
    )
    keys = tuple(await key_records(session))
    gateways = max(1, found[0][3] if found else 0)
    return GatewayState(_version(routes, keys, gateways), routes, keys, gateways)


def _version(routes: tuple[EndpointRoute, ...], keys: tuple[KeyRecord, ...], gateways: int) -> str:
    lasting = [msgspec.structs.replace(route, eta_s=None) for route in routes]
    return hashlib.sha256(msgspec.json.encode((lasting, keys, gateways))).hexdigest()[:24]


def _route(row: EndpointTable, alive: list[ReplicaTable], context: int, now_s: float) -> EndpointRoute:
    serving = [replica for replica in alive if serves(life.view(replica))]
    never = row.max_replicas == 0 and not serving
    state = "failed" if never else row.state
    waking = state == "waking"
    return EndpointRoute(
        id=str(row.id),
        tenant=str(row.tenant_id),
        name=row.name,
        model=row.model,
        state=state,
        created=int(row.created_at.timestamp()),
        max_model_len=context,
        replicas=tuple(
            ReplicaRoute(str(replica.id), replica.url, replica.token, replica.slots)
            for replica in serving
            if replica.url is not None and replica.token is not None
        ),
        phase=_phase(row, alive) if waking else None,
        eta_s=_eta_s(row, now_s) if waking else None,
        reason=service.max_is_zero(row.name) if never else _reason(row, state),
        retry_at=None if never or state != "failed" else unix(row.retry_at),
        wait_s=None if row.slo is None else msgspec.convert(row.slo, Slo).wait_s,
    )


def _phase(row: EndpointTable, alive: list[ReplicaTable]) -> str:
    """`capacity` while its next replica waits for room."""
    views = [life.view(replica) for replica in alive]
    return CAPACITY if row.obstacle and not any(is_coming(each) for each in views) else waking_phase(views)


def _reason(row: EndpointTable, state: EndpointState) -> str | None:
    """Why it cannot start, or why it does not yet."""
    return row.reason if state == "failed" else row.obstacle if state == "waking" else None


def _eta_s(row: EndpointTable, now_s: float) -> float | None:
    if row.start_s is None:
        return None
    passed_s = 0.0 if row.asked_at is None else now_s - row.asked_at.timestamp()
    return round(max(0.0, row.start_s - passed_s), 1)
