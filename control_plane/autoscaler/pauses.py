"""The idle times of endpoints that sleep by themselves: when one begins and ends, and what is kept of them in rows.
Knows nothing of what a plan says (keepalive.py), nor of how many replicas follow from it."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.autoscaler import keepalive
from control_plane.autoscaler.habits import FRESH_S, Habits, Histogram, Starts, together
from control_plane.autoscaler.keepalive import BINS, SHORTEST_S, History, Plan, Terms
from control_plane.autoscaler.pressure import pressure
from control_plane.endpoints.life import Held
from control_plane.endpoints.memory import GIB, usable_bytes
from control_plane.endpoints.states import ENDED
from control_plane.endpoints.tables import EndpointTable, KeepaliveTable, ReplicaTable
from control_plane.nodes.tables import NodeTable
from data_plane.wire.fleet import Device

START_S = 5.0
"""What a start is taken to cost while none of the artifact was seen."""


@dataclass(frozen=True)
class Turn:
    """An idle time ended (`idle_s`, at `ended_at`), another began at `began_at`, or both; None where not."""

    idle_s: float | None
    ended_at: float
    began_at: float | None


def turn(began_at: float | None, *, has_work: bool, last_work_at: float | None, now: float) -> Turn | None:
    """What changed since the idle time that is known to have begun at `began_at` (None: none was); None where nothing.

    Work that began and ended between two looks shows in `last_work_at`. Gateways tell it as a time ago, so it is not
    exact: what is less than the shortest idle time away is the same moment.
    """
    if has_work:
        return None if began_at is None else Turn(now - began_at, now, None)
    if last_work_at is None:
        return None
    if began_at is None:
        return Turn(None, now, last_work_at)
    if last_work_at - began_at < SHORTEST_S:
        return None
    return Turn(last_work_at - began_at, last_work_at, last_work_at)


@dataclass(frozen=True)
class Pause:
    """An idle time that has begun, and the plan for it."""

    began_at: float
    plan: Plan


async def look(session: AsyncSession, endpoint: EndpointTable) -> tuple[float | None, Pause | None]:
    """(when the idle time began that is known to go on, that with its plan), without its history."""
    query = select(KeepaliveTable.began_at, KeepaliveTable.plan).where(KeepaliveTable.endpoint_id == endpoint.id)
    found = (await session.execute(query)).one_or_none()
    if found is None or found.began_at is None:
        return None, None
    began_at = found.began_at.timestamp()
    return began_at, None if found.plan is None else Pause(began_at, msgspec.convert(found.plan, Plan))


class Fleet:
    """The habits of all endpoints that sleep by themselves: read once and then every FRESH_S, not with every plan."""

    def __init__(self) -> None:
        self._habits = Habits()
        self._read_at = -math.inf

    async def habits(self, session: AsyncSession, now: float) -> Habits:
        """As of `now` (Unix seconds), or as of FRESH_S before."""
        if not 0.0 <= now - self._read_at < FRESH_S:
            history = KeepaliveTable.history
            query = (
                select(history["hours"], history["days"], history["since"])
                .join(EndpointTable, EndpointTable.id == KeepaliveTable.endpoint_id)
                .where(EndpointTable.deleted_at.is_(None))
            )
            rows = (await session.execute(query)).tuples()
            kept = [_starts({"hours": hours, "days": days, "since": since}) for hours, days, since in rows]
            self._habits, self._read_at = together(kept, now), now
        return self._habits


async def take(session: AsyncSession, held: Held, change: Turn, fleet: Fleet) -> Pause | None:
    """Learns what ended and plans what began, once per idle time; the endpoint's row must be held. None while there is
    work."""
    endpoint = held.endpoint
    row = await session.get(KeepaliveTable, endpoint.id, populate_existing=True)
    if row is None:
        row = KeepaliveTable(endpoint_id=endpoint.id, history=encode(History()))
        session.add(row)
    history = decode(row.history)
    if change.idle_s is not None:
        history.learn(change.idle_s, change.ended_at)
        row.history = encode(history)
        endpoint.promised_until = None  # who counted on a start has had it
    endpoint.wake_at = None
    if change.began_at is None:
        # the plan is kept for whoever asks what was planned last
        row.began_at = None
        return None
    habits = await fleet.habits(session, held.now.timestamp())
    plan = keepalive.plan(history, await _terms(session, held), change.began_at, habits)
    row.began_at = datetime.fromtimestamp(change.began_at, UTC)
    row.plan = msgspec.to_builtins(plan)
    await session.flush()
    return Pause(change.began_at, plan)


def encode(history: History) -> dict[str, Any]:
    """As a row keeps it: of each histogram only the bins that hold something."""
    return {
        "bins": BINS,
        "whole": _sparse(history.whole),
        "lately": _sparse(history.lately),
        "hours": _sparse(history.starts.hours),
        "days": _sparse(history.starts.days),
        "since": history.starts.since,
    }


def decode(kept: dict[str, Any]) -> History:
    """The history in a row. One that was kept for other bins says nothing any more, and is begun anew."""
    history = History()
    if kept.get("bins") == BINS:
        _fill(history.whole, kept["whole"])
        _fill(history.lately, kept["lately"])
        history.starts = _starts(kept)
    return history


def _starts(kept: dict[str, Any]) -> Starts:
    """The starts in a row; rows were once kept without the days."""
    starts = Starts()
    _fill(starts.hours, kept.get("hours"))
    _fill(starts.days, kept.get("days"))
    starts.since = kept.get("since") or 0.0
    return starts


def _sparse(histogram: Histogram) -> dict[str, Any]:
    weights = {str(at): weight for at, weight in enumerate(histogram.weights) if weight > 1e-6}
    return {"at": histogram.at, "weights": weights}


def _fill(histogram: Histogram, kept: dict[str, Any] | None) -> None:
    if kept is None:
        return
    histogram.at = kept["at"]
    for at, weight in kept["weights"].items():
        histogram.weights[int(at)] = weight


async def _terms(session: AsyncSession, held: Held) -> Terms:
    endpoint = held.endpoint
    sizes = [row.memory_bytes or row.promised_bytes for row in held.replicas]
    if not sizes:
        query = select(ReplicaTable.promised_bytes).where(ReplicaTable.endpoint_id == endpoint.id)
        last = await session.execute(query.order_by(ReplicaTable.created_at.desc()).limit(1))
        sizes = list(last.scalars())
    return Terms(
        start_s=START_S if endpoint.start_s is None else endpoint.start_s,
        memory_bytes=max(sizes, default=GIB),
        pressure=await _pressure(session),
        constant_s=endpoint.idle_s,
    )


async def _pressure(session: AsyncSession) -> float:
    """Of all ready nodes: an idle replica's memory is wanted where the next one that wakes would be put."""
    promised = select(func.coalesce(func.sum(ReplicaTable.promised_bytes), 0)).where(ReplicaTable.status.not_in(ENDED))
    wanting = select(func.count(EndpointTable.id)).where(
        EndpointTable.deleted_at.is_(None), EndpointTable.desired > 0, EndpointTable.obstacle.is_not(None)
    )
    taken, waiting = (await session.execute(select(promised.scalar_subquery(), wanting.scalar_subquery()))).one()
    nodes = (await session.execute(select(NodeTable.devices).where(NodeTable.status == "ready"))).scalars()
    usable = sum(
        usable_bytes(device.memory_bytes, device.kind)
        for devices in nodes
        for device in msgspec.convert(devices, tuple[Device, ...])
    )
    return pressure(int(taken), usable, int(waiting))
