"""Tables of nodes (machines whose agents have registered), of tokens to join with, and of what signs credentials."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import Base, TenantRow


class NodeTable(TenantRow):
    """A machine. `tenant_id` is that of the key or join token its agent came with."""

    __tablename__ = "nodes"
    __table_args__ = (
        Index("uq_nodes_name", "tenant_id", "name", unique=True, postgresql_where=text("removed_at is null")),
    )

    name: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    """Grows by one with each registration; a report with another one comes from an agent that was replaced."""
    status: Mapped[str]
    """joined (its agent has not come yet), ready or lost."""
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
    machine: Mapped[str]
    """Which home on which machine the agent of this epoch runs on."""
    joined: Mapped[bool]
    """Whether it came with a join token: then its agent has a credential of its own, and no key."""
    cordoned: Mapped[bool]
    """Nothing new is placed on it."""
    draining: Mapped[bool]
    """Its replicas are to be replaced elsewhere; implies cordoned."""
    steady_at: Mapped[datetime | None]
    """It came back from silence: until then others take what it could."""
    removed_at: Mapped[datetime | None]


class JoinTokenTable(TenantRow):
    """A token with which one machine may join once, known by the SHA-256 of its secret."""

    __tablename__ = "join_tokens"

    prefix: Mapped[str] = mapped_column(unique=True)
    secret_sha256: Mapped[str]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    used_by: Mapped[str | None]
    """The name of the node it became."""


class SigningKeyTable(Base):
    """A random secret of 256 bits, in hexadecimal, that all control planes on this database sign with."""

    __tablename__ = "signing_keys"

    name: Mapped[str] = mapped_column(primary_key=True)
    secret: Mapped[str]
