"""Tables of what requests used. They name endpoints, and outlive them; rows are bounded by time (see loop.py)."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Identity, Index, Integer
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import Base


class UsageHourTable(Base):
    """Requests with one key to one endpoint that came within one hour."""

    __tablename__ = "usage_hours"
    __table_args__ = (Index("ix_usage_hours_hour", "hour"),)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    endpoint: Mapped[str] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    refused: Mapped[int] = mapped_column(BigInteger)
    """For something that was wrong with the request, or with what its key may do."""
    failed: Mapped[int] = mapped_column(BigInteger)
    cancelled: Mapped[int] = mapped_column(BigInteger)
    """By the client, before the answer's end."""
    cold: Mapped[int] = mapped_column(BigInteger)
    """Those that had to wait for a replica to start."""
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    """Of the prompts', those that were in a replica's cache."""
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    duration_ms: Mapped[int] = mapped_column(BigInteger)
    """Of all of them together."""
    first: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    """How many streams had their first token within each class of times (wire.usage.BOUNDS_MS)."""


class UsageBlockTable(Base):
    """The requests themselves, as one report of a gateway told them: for replays. See packing.py."""

    __tablename__ = "usage_blocks"
    __table_args__ = (
        Index("ix_usage_blocks_tenant_id", "tenant_id", "last_at"),
        Index("ix_usage_blocks_last_at", "last_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    tenant_id: Mapped[UUID]
    endpoint: Mapped[str]
    key_id: Mapped[str]
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]
    """When the first and the last of them came."""
    requests: Mapped[int] = mapped_column(BigInteger)
    packed: Mapped[bytes]


class UsageSenderTable(Base):
    """The last batch of each gateway that was stored: one that comes again is not stored twice."""

    __tablename__ = "usage_senders"

    gateway: Mapped[str] = mapped_column(primary_key=True)
    boot: Mapped[str]
    number: Mapped[int] = mapped_column(BigInteger)
    heard_at: Mapped[datetime]
