"""Registers nodes and hears their heartbeats. Never commits. Knows nothing of replicas."""

from uuid import UUID

import msgspec
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db import metrics
from control_plane.db.bells import ring
from control_plane.db.clock import db_now
from control_plane.errors import Invalid, Missing, StaleEpoch
from control_plane.events.service import record
from control_plane.nodes.tables import NodeTable
from data_plane.wire.fleet import NodeRegistration, NodeWelcome
from data_plane.wire.names import NAME_RULE, is_name

MOST_DEVICES = 64


async def register(session: AsyncSession, tenant_id: UUID, node: NodeRegistration) -> NodeWelcome:
    """The node's id (the same for the same name) and a new epoch, which fences off the name's earlier agent."""
    _check(node)
    facts: dict[str, object] = {
        "status": "ready",
        "host": node.host,
        "agent_url": node.agent_url.rstrip("/"),
        "agent_token": node.agent_token,
        "devices": msgspec.to_builtins(node.devices),
        "cpus": node.cpus,
        "memory_bytes": node.memory_bytes,
        "version": node.version,
        "last_seen_at": await db_now(session),
    }
    before = await _epoch(session, tenant_id, node.name)
    free_bytes = max((device.memory_free_bytes for device in node.devices if device.kind == "cpu"), default=0)
    first = {"tenant_id": tenant_id, "name": node.name, "epoch": node.epoch + 1, "memory_free_bytes": free_bytes}
    upsert = insert(NodeTable).values({**first, **facts})
    upsert = upsert.on_conflict_do_update(
        index_elements=["tenant_id", "name"],
        set_={"epoch": func.greatest(NodeTable.epoch, node.epoch) + 1, **facts},
    )
    node_id, epoch = (await session.execute(upsert.returning(NodeTable.id, NodeTable.epoch))).one()
    reason = f"Its agent registered from {node.host}."
    await record(session, tenant_id, "node", node.name, "ready", reason, {"epoch": epoch, "version": node.version})
    if before < node.epoch:
        metrics.DIVERGED.labels("epoch").inc()
        reason = f"Its agent was given epoch {node.epoch}, and the database knew of {before}: it has lost writes."
        await record(session, tenant_id, "node", node.name, "diverged", reason, {"known": before, "seen": node.epoch})
    await ring(session, "placement", f"node:{node_id}")
    return NodeWelcome(str(node_id), epoch)


async def _epoch(session: AsyncSession, tenant_id: UUID, name: str) -> int:
    query = select(NodeTable.epoch).where(NodeTable.tenant_id == tenant_id, NodeTable.name == name)
    return (await session.execute(query)).scalar_one_or_none() or 0


async def heard(session: AsyncSession, node_id: UUID, epoch: int, memory_free_bytes: int) -> NodeTable:
    """Locks the node and notes that its agent is alive. Raises Missing, and StaleEpoch where another registered."""
    query = select(NodeTable).where(NodeTable.id == node_id).with_for_update(key_share=True)
    row = (await session.execute(query)).scalar_one_or_none()
    if row is None:
        raise Missing("node", str(node_id), "ebb nodes")
    if row.epoch != epoch:
        metrics.STALE.labels("node").inc()
        raise StaleEpoch(f"node '{row.name}'", epoch)
    row.last_seen_at = await db_now(session)
    row.memory_free_bytes = max(0, memory_free_bytes)
    if row.status != "ready":
        row.status = "ready"
        await record(session, row.tenant_id, "node", row.name, "ready", "Its agent reports again.")
        await ring(session, "placement")
    return row


async def lose(session: AsyncSession, node: NodeTable, reason: str) -> None:
    """The node is not heard any more: nothing is placed on it until it is."""
    node.status = "lost"
    await record(session, node.tenant_id, "node", node.name, "lost", reason)
    await ring(session, "placement")


async def list_nodes(session: AsyncSession, tenant_id: UUID) -> list[NodeTable]:
    """All nodes by name."""
    query = select(NodeTable).where(NodeTable.tenant_id == tenant_id).order_by(NodeTable.name)
    return list((await session.execute(query)).scalars())


def _check(node: NodeRegistration) -> None:
    if not is_name(node.name):
        raise Invalid(f"A node's name has {NAME_RULE}, and no '..'; this is '{node.name[:80]}'.", "name")
    if not node.agent_url.startswith(("http://", "https://")):
        raise Invalid(f"agent_url is '{node.agent_url[:80]}'; it must start with http:// or https://.", "agent_url")
    if not 1 <= len(node.devices) <= MOST_DEVICES:
        raise Invalid(f"A node has 1 to {MOST_DEVICES} devices, not {len(node.devices)}.", "devices")
    if node.epoch < 0:
        raise Invalid(f"epoch is {node.epoch}; it must be the one that was given, or 0.", "epoch")
    for device in node.devices:
        if device.memory_bytes < 0 or device.index < 0:
            raise Invalid(f"Device {device.name!r} has a negative size or index.", "devices")
