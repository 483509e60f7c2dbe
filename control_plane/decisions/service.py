"""Records what was decided, from what and why, and reads it back. Never commits. Knows nothing of who decides."""

import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast
from uuid import UUID

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.decisions.tables import DecisionTable
from control_plane.errors import Missing

Kind = Literal["scale", "place", "evict", "wake", "sleep"]
Policy = Literal["autoscaler", "keepalive", "planner", "eviction", "turn", "request"]
KINDS: tuple[Kind, ...] = ("scale", "place", "evict", "wake", "sleep")
KEPT_DAYS = 7
MOST_KEPT = 20_000
"""Of all tenants together; a row is a few kilobytes."""
MAX_REASON = 2000
ENDLESS = 1e18
"""Stands for infinity: JSON has none."""


@dataclass(frozen=True)
class Basis:
    """What a decision was made from: the pure function's name, and its arguments by name (dataclasses or plain)."""

    policy: Policy = "request"
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])


ASKED = Basis()
"""Somebody asked for it: nothing was decided."""


def kind_of(before: int, after: int) -> Kind:
    """The word for another number of replicas."""
    return "wake" if before == 0 else "sleep" if after == 0 else "scale"


async def record(
    session: AsyncSession,
    tenant_id: UUID,
    kind: Kind,
    subject: str,
    reason: str,
    basis: Basis,
    outcome: dict[str, Any],
) -> None:
    """Adds a decision to this transaction."""
    session.add(
        DecisionTable(
            tenant_id=tenant_id,
            kind=kind,
            subject=subject,
            policy=basis.policy,
            reason=reason.replace("\0", " ")[:MAX_REASON],
            inputs=plain(basis.inputs),
            outcome=plain(outcome),
        )
    )


def plain(value: Any) -> Any:
    """As JSON holds it: dataclasses become objects, and what is not finite a number beyond all others."""
    return _finite(msgspec.to_builtins(value, str_keys=True))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return math.copysign(ENDLESS, value)
    return value


async def list_decisions(
    session: AsyncSession, tenant_id: UUID, *, subject: str | None = None, kind: str | None = None, limit: int = 50
) -> list[DecisionTable]:
    """The last `limit`, oldest first."""
    query = select(DecisionTable).where(DecisionTable.tenant_id == tenant_id)
    if subject is not None:
        query = query.where(DecisionTable.subject == subject)
    if kind is not None:
        query = query.where(DecisionTable.kind == kind)
    newest = list((await session.execute(query.order_by(DecisionTable.id.desc()).limit(limit))).scalars())
    return newest[::-1]


async def find(session: AsyncSession, tenant_id: UUID, decision_id: int) -> DecisionTable:
    """Raises Missing."""
    query = select(DecisionTable).where(DecisionTable.id == decision_id, DecisionTable.tenant_id == tenant_id)
    row = (await session.execute(query)).scalar_one_or_none()
    if row is None:
        raise Missing("decision", str(decision_id), "ebb events --decisions")
    return row


async def trim(session: AsyncSession, *, most: int = MOST_KEPT) -> None:
    """Drops what is older than KEPT_DAYS, and beyond the newest `most`."""
    old = DecisionTable.at < func.clock_timestamp() - timedelta(days=KEPT_DAYS)
    await session.execute(delete(DecisionTable).where(old))
    last = select(func.max(DecisionTable.id)).scalar_subquery()
    # ids have few gaps, so that this is nearly a count, without counting
    await session.execute(delete(DecisionTable).where(DecisionTable.id <= last - most))
