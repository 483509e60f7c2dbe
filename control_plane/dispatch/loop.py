"""Watches over nodes that fall silent, drains that do not end, and rows that nobody needs. Knows nothing of what nodes
should run; that agents hear of changes is the bells' work, not this loop's."""

import time
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db.bells import ring
from control_plane.db.clock import db_now
from control_plane.db.loop import Leadership
from control_plane.decisions import service as decisions
from control_plane.dispatch import service
from control_plane.endpoints import metrics
from control_plane.endpoints.states import ENDED, PHASES
from control_plane.endpoints.tables import DemandTable, EndpointTable, ReplicaTable, StartTable
from control_plane.events.service import record
from control_plane.nodes import service as nodes
from control_plane.nodes.lease import LeaseTerms
from control_plane.nodes.tables import NodeTable

TICK_S = 3.0
DRAIN_S = 600.0
"""The longest request that a drain waits for; after it the replica is stopped."""
DRAIN_DELETED_S = 30.0
KEPT_DAYS = 7
KEPT_STARTS_DAYS = 30
CLEAN_EVERY_S = 600.0
STATES = ("zero", "waking", "live", "draining", "failed")


class DispatchLoop:
    """Observe, decide, apply; the only memory is how long this process has been able to hear.

    After it began, or could not tick (the database was down, the process stopped), silence may be its own fault: for as
    long as it takes to call a node lost, agents are given time to come back.
    """

    name = "dispatch"
    topics: tuple[str, ...] = ()

    def __init__(self, terms: LeaseTerms, *, grace_s: float | None = None) -> None:
        self._silence_s = terms.silence_s
        self._grace_s = terms.silence_s if grace_s is None else grace_s
        self.interval_s = min(TICK_S, terms.lease_s / 3)
        self._ticked_at = time.monotonic()
        self._judges_from = self._ticked_at + self._grace_s
        self._told_epoch: int | None = None
        self._cleaned_at = time.monotonic()

    async def tick(self, leadership: Leadership) -> float | None:
        """One round."""
        started = time.perf_counter()
        now = time.monotonic()
        if now - self._ticked_at > self._silence_s / 2 + self.interval_s:
            # this process was stopped, or the database did not answer: nobody could be heard
            self._judges_from = now + self._grace_s
        await self._tell_of_recovery(leadership)
        if now >= self._judges_from:
            await self._judge_nodes(leadership)
        await _stop_long_drains(leadership)
        async with leadership.database.transaction() as session:
            await _count(session)
        if time.monotonic() - self._cleaned_at > CLEAN_EVERY_S:
            await _clean(leadership)
            self._cleaned_at = time.monotonic()
        self._ticked_at = time.monotonic()
        metrics.LOOP_SECONDS.labels(self.name).observe(time.perf_counter() - started)
        return None

    async def _tell_of_recovery(self, leadership: Leadership) -> None:
        """Once, where another PostgreSQL server has taken over: it may lack writes that nodes know of."""
        recovered = leadership.recovered
        if recovered is None or leadership.epoch == self._told_epoch:
            return
        async with leadership.transaction() as session:
            for node in (await session.execute(select(NodeTable).where(NodeTable.status == "ready"))).scalars():
                reason = (
                    f"Another PostgreSQL server has taken over (timeline {recovered.timeline}, before it "
                    f"{recovered.known}). What it lacks is taken back from this node's next report; nothing is placed "
                    "before that."
                )
                await record(session, node.tenant_id, "node", node.name, "recovering", reason)
        self._told_epoch = leadership.epoch

    async def _judge_nodes(self, leadership: Leadership) -> None:
        silent_for = timedelta(seconds=self._silence_s)
        silent = NodeTable.last_seen_at < func.clock_timestamp() - silent_for
        async with leadership.database.transaction() as session:
            query = select(NodeTable.id).where(NodeTable.status == "ready", silent)
            suspects = list((await session.execute(query)).scalars())
        for node_id in suspects:
            async with leadership.transaction() as session:
                await _lose_if_silent(session, node_id, silent_for)


async def _lose_if_silent(session: AsyncSession, node_id: UUID, silent_for: timedelta) -> None:
    query = select(NodeTable).where(NodeTable.id == node_id, NodeTable.status == "ready")
    node = (await session.execute(query.with_for_update(key_share=True))).scalar_one_or_none()
    if node is None or node.last_seen_at >= await db_now(session) - silent_for:
        return  # it was heard between the look and the lock
    reason = f"Node '{node.name}' was not heard of for {silent_for.total_seconds():g} s."
    await nodes.lose(session, node, reason)
    await service.lose_node(session, node.id, reason)


async def _stop_long_drains(leadership: Leadership) -> None:
    released_for = func.clock_timestamp() - ReplicaTable.released_at
    query = (
        select(ReplicaTable)
        .join(EndpointTable, EndpointTable.id == ReplicaTable.endpoint_id)
        .where(
            ReplicaTable.status.not_in(ENDED),
            ReplicaTable.intent == "drain",
            or_(
                released_for > timedelta(seconds=DRAIN_S),
                (released_for > timedelta(seconds=DRAIN_DELETED_S)) & EndpointTable.deleted_at.is_not(None),
            ),
        )
    )
    async with leadership.database.transaction() as session:
        if (await session.execute(query.limit(1))).first() is None:
            return
    async with leadership.transaction() as session:
        locked = query.with_for_update(of=ReplicaTable, skip_locked=True)
        for replica in (await session.execute(locked)).scalars():
            replica.intent = "stop"
            replica.reason = "It did not finish its requests in time."
            await session.flush()
            ring(session, f"node:{replica.node_id}")


async def _count(session: AsyncSession) -> None:
    alive = select(EndpointTable.state, func.count()).where(EndpointTable.deleted_at.is_(None))
    by_state = dict((await session.execute(alive.group_by(EndpointTable.state))).all())
    for state in STATES:
        metrics.ENDPOINTS.labels(state).set(by_state.get(state, 0))
    present = select(ReplicaTable.status, func.count()).where(ReplicaTable.status.not_in(ENDED))
    by_status = dict((await session.execute(present.group_by(ReplicaTable.status))).all())
    for status in PHASES:
        if status not in ENDED:
            metrics.REPLICAS.labels(status).set(by_status.get(status, 0))


async def _clean(leadership: Leadership) -> None:
    old = func.clock_timestamp() - timedelta(days=KEPT_DAYS)
    long_ago = func.clock_timestamp() - timedelta(days=KEPT_STARTS_DAYS)
    async with leadership.transaction() as session:
        await session.execute(delete(ReplicaTable).where(ReplicaTable.ended_at < old))
        await session.execute(delete(StartTable).where(StartTable.created_at < long_ago))
        await session.execute(delete(DemandTable).where(DemandTable.reported_at < old))
        await decisions.trim(session)
