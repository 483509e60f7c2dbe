"""Registers nodes, hears their heartbeats, keeps what people want of them. Never commits. Knows nothing of replicas."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import msgspec
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.db import metrics as store
from control_plane.db.bells import ring
from control_plane.db.clock import db_now
from control_plane.errors import Conflict, Invalid, Missing, StaleEpoch
from control_plane.events.service import record
from control_plane.nodes import metrics
from control_plane.nodes.lease import LeaseTerms
from control_plane.nodes.tables import NodeTable
from data_plane.wire.fleet import NodeRegistration
from data_plane.wire.names import NAME_RULE, is_name

MOST_DEVICES = 64
PEERS = "peers"
"""The bell of who the nodes are."""


@dataclass(frozen=True)
class Registered:
    """A node's id and the epoch of the agent that registered just now."""

    node_id: UUID
    epoch: int


async def register(
    session: AsyncSession, tenant_id: UUID, node: NodeRegistration, terms: LeaseTerms, own_id: UUID | None = None
) -> Registered:
    """The node's id (the same for the same name) and a new epoch, which fences off the name's earlier agent.

    `own_id`: of the node whose credential was shown. Raises Invalid, and Conflict while an agent on another machine has
    the name and is heard: of two that share one, the one that is there goes on.
    """
    _check(node)
    row = await _by_name(session, tenant_id, node.name)
    if own_id is not None and (row is None or row.id != own_id):
        raise Invalid(f"This credential is not that of node '{node.name}'. Start the agent as it joined.", "name")
    now = await db_now(session)
    if row is not None and row.machine and row.machine != node.machine and row.status == "ready":
        silent_s = (now - row.last_seen_at).total_seconds()
        if silent_s < terms.silence_s:
            raise _taken(row, node, silent_s, terms)
    facts: dict[str, object] = {
        "status": "ready",
        "host": node.host,
        "agent_url": node.agent_url.rstrip("/"),
        "agent_token": node.agent_token,
        "devices": msgspec.to_builtins(node.devices),
        "cpus": node.cpus,
        "memory_bytes": node.memory_bytes,
        "version": node.version,
        "read_bytes_per_s": max(0.0, node.read_bytes_per_s),
        "machine": node.machine[:200],
        "last_seen_at": now,
    }
    before = 0 if row is None else row.epoch
    free_bytes = max((device.memory_free_bytes for device in node.devices if device.kind == "cpu"), default=0)
    fresh = {
        **{"epoch": node.epoch + 1, "memory_free_bytes": free_bytes},
        **{"joined": False, "cordoned": False, "draining": False},
    }
    upsert = (
        insert(NodeTable)
        .values(tenant_id=tenant_id, name=node.name, **fresh, **facts)
        .on_conflict_do_update(
            index_elements=["tenant_id", "name"],
            index_where=NodeTable.removed_at.is_(None),
            set_={"epoch": func.greatest(NodeTable.epoch, node.epoch) + 1, **facts},
        )
    )
    node_id, epoch = (await session.execute(upsert.returning(NodeTable.id, NodeTable.epoch))).one()
    reason = f"Its agent registered from {node.host}."
    await record(session, tenant_id, "node", node.name, "ready", reason, {"epoch": epoch, "version": node.version})
    if before < node.epoch:
        store.DIVERGED.labels("epoch").inc()
        reason = f"Its agent was given epoch {node.epoch}, and the database knew of {before}: it has lost writes."
        await record(session, tenant_id, "node", node.name, "diverged", reason, {"known": before, "seen": node.epoch})
    ring(session, "placement", PEERS, f"node:{node_id}")
    return Registered(node_id, epoch)


def _taken(row: NodeTable, node: NodeRegistration, silent_s: float, terms: LeaseTerms) -> Conflict:
    metrics.REFUSED.labels(metrics.TAKEN).inc()
    return Conflict(
        f"Another agent runs as node '{row.name}', on {row.host}: it was heard {silent_s:.1f} s ago. Two machines must "
        f"not share a name: start this one (on {node.host}) with another --name, or stop that one and wait"
        f" {terms.silence_s:g} s.",
        code="node_name_taken",
        param="name",
    )


async def heard(
    session: AsyncSession, node_id: UUID, epoch: int, memory_free_bytes: int, terms: LeaseTerms
) -> NodeTable:
    """Locks the node and notes that its agent is alive. Raises Missing, and StaleEpoch where another registered."""
    row = await present(session, node_id, lock=True)
    if row.epoch != epoch:  # a lower one too: the database was put back, and the agent has to say so
        metrics.REFUSED.labels(metrics.STALE).inc()
        store.STALE.labels("node").inc()
        raise StaleEpoch(f"node '{row.name}'", epoch)
    now = await db_now(session)
    if row.status == "lost" or now - row.last_seen_at > timedelta(seconds=terms.lease_s):
        # lost or not, it may have ended its replicas
        row.steady_at = now + timedelta(seconds=terms.steady_s)
    row.last_seen_at = now
    row.memory_free_bytes = max(0, memory_free_bytes)
    if row.status != "ready":
        row.status = "ready"
        await record(session, row.tenant_id, "node", row.name, "ready", "Its agent reports again.")
        ring(session, "placement")
    return row


async def lose(session: AsyncSession, node: NodeTable, reason: str) -> None:
    """The node is not heard any more: nothing is placed on it until it is."""
    node.status = "lost"
    await record(session, node.tenant_id, "node", node.name, "lost", reason)
    ring(session, "placement")


async def present(session: AsyncSession, node_id: UUID, *, lock: bool = False) -> NodeTable:
    """A node that was not removed. Raises Missing."""
    query = select(NodeTable).where(NodeTable.id == node_id, NodeTable.removed_at.is_(None))
    row = (await session.execute(query.with_for_update(key_share=True) if lock else query)).scalar_one_or_none()
    if row is None:
        raise missing(node_id)
    return row


def missing(node_id: UUID) -> Missing:
    """There is no such node, or it was removed."""
    return Missing("node", str(node_id), "ebb nodes")


async def named(session: AsyncSession, tenant_id: UUID, name: str) -> NodeTable:
    """A node by its name, locked. Raises Missing."""
    row = await _by_name(session, tenant_id, name)
    if row is None:
        raise Missing("node", name, "ebb nodes")
    return row


async def set_cordon(session: AsyncSession, node: NodeTable, *, cordoned: bool, draining: bool, by: str) -> None:
    """Whether anything new is placed there, and whether what is there is to be replaced elsewhere."""
    if (node.cordoned, node.draining) == (cordoned, draining):
        return
    node.cordoned, node.draining = cordoned, draining
    word = "draining" if draining else "cordoned" if cordoned else "uncordoned"
    reasons = {
        "draining": "Its replicas are replaced elsewhere, and nothing new is placed on it.",
        "cordoned": "Nothing new is placed on it.",
        "uncordoned": "It takes replicas again.",
    }
    await record(session, node.tenant_id, "node", node.name, word, reasons[word], {"by": by})
    await session.flush()
    ring(session, "placement")


async def remove(session: AsyncSession, node: NodeTable, by: str) -> None:
    """Its credential is refused from now on, and its name may be used again."""
    node.removed_at = await db_now(session)
    node.status = "removed"
    await record(session, node.tenant_id, "node", node.name, "removed", "It was removed.", {"by": by})
    await session.flush()
    ring(session, "placement", PEERS, f"node:{node.id}")


async def list_nodes(session: AsyncSession, tenant_id: UUID) -> list[NodeTable]:
    """All nodes by name, without removed ones."""
    here = NodeTable.tenant_id == tenant_id, NodeTable.removed_at.is_(None)
    return list((await session.execute(select(NodeTable).where(*here).order_by(NodeTable.name))).scalars())


_EVERYONE = select(NodeTable).where(NodeTable.removed_at.is_(None)).order_by(NodeTable.name, NodeTable.id)


async def everyone(session: AsyncSession) -> list[NodeTable]:
    """All nodes that were not removed, of whichever tenant, by name. A lost one may come back, and be given replicas of
    the others."""
    return list((await session.execute(_EVERYONE)).scalars())


async def _by_name(session: AsyncSession, tenant_id: UUID, name: str) -> NodeTable | None:
    here = NodeTable.tenant_id == tenant_id, NodeTable.name == name, NodeTable.removed_at.is_(None)
    return (await session.execute(select(NodeTable).where(*here).with_for_update(key_share=True))).scalar_one_or_none()


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
