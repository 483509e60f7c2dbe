"""The table of decisions: append only, and bounded."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Identity, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import Base


class DecisionTable(Base):
    """What was decided on one endpoint, from what, and why. It outlives the endpoint."""

    __tablename__ = "decisions"
    __table_args__ = (Index("ix_decisions_subject", "tenant_id", "subject", "id"), Index("ix_decisions_at", "at"))

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    tenant_id: Mapped[UUID]
    kind: Mapped[str]
    """scale, place, evict, wake or sleep."""
    subject: Mapped[str]
    """The endpoint's name."""
    policy: Mapped[str]
    """Which pure function decided: autoscaler, planner, eviction, turn; or request, which nothing decided."""
    reason: Mapped[str]
    inputs: Mapped[dict[str, Any]]
    """What the function was given: enough to ask it again."""
    outcome: Mapped[dict[str, Any]]
