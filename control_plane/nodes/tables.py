"""The table of nodes: machines whose agents have registered."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import TenantRow


class NodeTable(TenantRow):
    """A machine. `tenant_id` is that of the key its agent came with."""

    __tablename__ = "nodes"
    __table_args__ = (UniqueConstraint("tenant_id", "name", name="uq_nodes_tenant_id_name"),)

    name: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    """Grows by one with each registration; a report with another one comes from an agent that was replaced."""
    status: Mapped[str]
    """ready or lost."""
    host: Mapped[str]
    agent_url: Mapped[str]
    agent_token: Mapped[str]
    devices: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    cpus: Mapped[int]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_free_bytes: Mapped[int] = mapped_column(BigInteger)
    read_bytes_per_s: Mapped[float] = mapped_column(server_default="0")
    """How fast it reads files that are in its memory, as its agent measured; 0 where it did not."""
    version: Mapped[str]
    last_seen_at: Mapped[datetime]
