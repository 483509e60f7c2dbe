"""What replicas were measured to take beyond the estimate, by artifact and kind of device. Never commits. Knows nothing
of who places replicas by it."""

from collections.abc import Collection
from datetime import datetime
from typing import cast

import msgspec
from sqlalchemy import BigInteger, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.catalog.quantization import DeviceKind
from control_plane.db.base import Base
from control_plane.endpoints.specs import RevisionSpec
from control_plane.endpoints.tables import ReplicaTable, RevisionTable

FORGET = 4
"""A replica that ends having taken less moves the correction a quarter of the way; one that takes more, at once."""


class MeasuredTable(Base):
    """One correction. `excess_bytes` is negative where replicas take less than is estimated."""

    __tablename__ = "measured_memory"

    artifact: Mapped[str] = mapped_column(primary_key=True)
    """Its digest."""
    device_kind: Mapped[str] = mapped_column(primary_key=True)
    excess_bytes: Mapped[int] = mapped_column(BigInteger)
    replicas: Mapped[int]
    """How many have ended since."""
    measured_at: Mapped[datetime]


def correct(excess_bytes: int | None, seen_bytes: int, *, has_ended: bool) -> int:
    """The correction after a replica took `seen_bytes` beyond the estimate: up at once, for too little is fatal; down
    slowly, and only by replicas that have had their whole life to take more."""
    if excess_bytes is None or seen_bytes > excess_bytes:
        return seen_bytes
    return excess_bytes + (seen_bytes - excess_bytes) // FORGET if has_ended else excess_bytes


async def excess(session: AsyncSession, artifacts: Collection[str]) -> dict[tuple[str, DeviceKind], int]:
    """The corrections there are, by digest and kind of device."""
    query = select(MeasuredTable).where(MeasuredTable.artifact.in_(artifacts))
    rows = (await session.execute(query)).scalars()
    return {(row.artifact, cast("DeviceKind", row.device_kind)): row.excess_bytes for row in rows}


async def learn(session: AsyncSession, replica: ReplicaTable, *, has_ended: bool = False) -> None:
    """Takes in what a replica's memory was, beside its KV cache. One that was not measured teaches nothing."""
    if not replica.fixed_bytes or replica.ready_at is None:
        return
    query = select(RevisionTable.spec).where(
        RevisionTable.endpoint_id == replica.endpoint_id, RevisionTable.number == replica.generation
    )
    spec = msgspec.convert((await session.execute(query)).scalar_one(), RevisionSpec)
    kind: DeviceKind = "cpu" if replica.device == "cpu" else "cuda"
    seen = replica.fixed_bytes - spec.estimate(kind).fixed_bytes
    key = (MeasuredTable.artifact == spec.artifact, MeasuredTable.device_kind == kind)
    known = (await session.execute(select(MeasuredTable.excess_bytes).where(*key).with_for_update())).scalar()
    value = correct(known, seen, has_ended=has_ended)
    if value == known and not has_ended:
        return
    ended = int(has_ended)
    new = insert(MeasuredTable).values(
        artifact=spec.artifact,
        device_kind=kind,
        excess_bytes=value,
        replicas=ended,
        measured_at=func.clock_timestamp(),
    )
    changed = {"excess_bytes": value, "replicas": MeasuredTable.replicas + ended, "measured_at": func.clock_timestamp()}
    await session.execute(new.on_conflict_do_update(index_elements=["artifact", "device_kind"], set_=changed))
