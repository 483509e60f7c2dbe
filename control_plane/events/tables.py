"""The table of events: append only."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Identity, func
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import Base


class EventTable(Base):
    """Something changed, and why. Ids grow in the order of commits, so a reader that has seen N has seen all before."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    tenant_id: Mapped[UUID] = mapped_column(index=True)
    kind: Mapped[str]
    subject: Mapped[str] = mapped_column(index=True)
    type: Mapped[str]
    reason: Mapped[str]
    data: Mapped[dict[str, Any]]
