"""REST: GET /api/v1/endpoints/{name}/explain."""

from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

import msgspec
from litestar import Controller, get
from litestar.params import FromPath
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.clock import db_now
from control_plane.decisions import service as decisions
from control_plane.decisions.schemas import Decision, to_decision
from control_plane.endpoints import life, measured, service
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.states import serves
from control_plane.endpoints.tables import EndpointTable, ReplicaTable
from control_plane.events.service import last_of
from control_plane.nodes.tables import NodeTable
from control_plane.placement import observe
from control_plane.placement.eviction import Resident
from control_plane.placement.explain import Facts, explain
from control_plane.tenants.auth import READ, AuthRequest, RequestSession, tenant_of

MOST_DECISIONS = 5


class Explained(msgspec.Struct, frozen=True):
    """Why an endpoint is as it is: sentences, the memory it waits for, who holds it, and the last decisions on it."""

    endpoint: str
    state: str
    sentences: list[str]
    needs_bytes: int | None
    free_bytes: int | None
    where: str | None
    holders: list[dict[str, Any]]
    decisions: list[Decision]


class ExplainController(Controller):
    """Why an endpoint is in the state it is in."""

    path = "/api/v1/endpoints/{name:str}/explain"
    tags = ["endpoints"]  # noqa: RUF012

    @get(opt=READ, summary="Explain an endpoint's state")
    async def explain(self, request: AuthRequest, session: RequestSession, name: FromPath[str]) -> Explained:
        """In sentences, with the numbers."""
        row = await service.find(session, tenant_of(request), name)
        fleet = await observe.fleet(session)
        residents = await _without_strangers(session, row.tenant_id, fleet.residents)
        told = explain(await _facts(session, row), fleet.devices, residents)
        rows = await decisions.list_decisions(session, row.tenant_id, subject=row.name, limit=MOST_DECISIONS)
        return Explained(
            endpoint=row.name,
            state=row.state,
            sentences=told.sentences,
            needs_bytes=told.needs_bytes,
            free_bytes=told.free_bytes,
            where=told.where,
            holders=[asdict(each) for each in told.holders],
            decisions=[to_decision(each) for each in rows],
        )


async def _without_strangers(session: AsyncSession, tenant_id: UUID, there: list[Resident]) -> list[Resident]:
    """What another tenant's endpoints are called is nobody else's business; that they hold memory is."""
    query = select(EndpointTable.id).where(EndpointTable.tenant_id == tenant_id)
    own = {str(each) for each in (await session.execute(query)).scalars()}
    return [each if each.endpoint_id in own else replace(each, endpoint="another tenant's") for each in there]


async def _facts(session: AsyncSession, row: EndpointTable) -> Facts:
    moment = await db_now(session)
    alive = (await service.alive_replicas(session, [row.id]))[row.id]
    spec = msgspec.convert((await service.specs(session, [row]))[row.id], RevisionSpec)
    excess = await measured.excess(session, {spec.artifact})
    work = (await observe.work_of(session, {row.id}, moment))[row.id]
    turned = await last_of(session, row.tenant_id, "endpoint", row.name, row.state)
    return Facts(
        endpoint=row.name,
        state=row.state,
        reason=row.reason,
        since_s=None if turned is None else max(0.0, (moment - turned).total_seconds()),
        obstacle=row.obstacle,
        ready=sum(serves(life.view(each)) for each in alive),
        desired=row.desired,
        min=row.min_replicas,
        max=row.max_replicas,
        idle_for_s=work.idle_s,
        has_work=work.has_work,
        retry_in_s=None if row.retry_at is None else (row.retry_at - moment).total_seconds(),
        phases=tuple(await _phases(session, alive)),
        need=observe.need_of(spec, excess),
    )


async def _phases(session: AsyncSession, alive: list[ReplicaTable]) -> list[str]:
    query = select(NodeTable.id, NodeTable.name).where(NodeTable.id.in_({each.node_id for each in alive}))
    names: dict[UUID, str] = dict((await session.execute(query)).all())
    return [f"{each.status} on {each.device} of node {names.get(each.node_id, '?')}" for each in alive]
