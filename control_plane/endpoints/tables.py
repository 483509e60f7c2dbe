"""Tables of endpoints, their immutable revisions, their replicas, the demand that gateways see on them, and what was
learned from it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint, false, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import Base, Row, TenantRow
from data_plane.wire.fleet import Intent, ReplicaPhase
from data_plane.wire.routes import EndpointState

ALIVE = text("status not in ('stopped', 'failed')")


class EndpointTable(TenantRow):
    """The thing with a URL. `state` is what `states.endpoint_state` said when a row of it last changed."""

    __tablename__ = "endpoints"
    __table_args__ = (
        Index("uq_endpoints_name", "tenant_id", "name", unique=True, postgresql_where=text("deleted_at is null")),
        # of hundreds that sleep only those are looked at that are to be woken
        Index("ix_endpoints_wake_at", "wake_at", postgresql_where=text("wake_at is not null")),
    )

    name: Mapped[str]
    model_id: Mapped[UUID | None] = mapped_column(ForeignKey("models.id"), index=True)
    """None once the endpoint is deleted, so that the model may be."""
    model: Mapped[str]
    revision: Mapped[int]
    """The current revision's number: the generation of the replicas that are wanted."""
    min_replicas: Mapped[int]
    max_replicas: Mapped[int]
    idle_s: Mapped[float]
    """Of an `idle_auto` endpoint what it is kept for while its idle times are too few to tell."""
    idle_auto: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It sleeps and wakes by its own idle times (autoscaler/keepalive.py)."""
    slo: Mapped[dict[str, Any] | None]
    """The latency it is to hold, where it has one: slo.Slo."""
    priority: Mapped[str] = mapped_column(server_default="normal", default="normal")
    """low, normal or high: its place in line, and what losing a replica of it weighs."""
    desired: Mapped[int]
    state: Mapped[EndpointState] = mapped_column(String)
    reason: Mapped[str]
    obstacle: Mapped[str | None]
    """Why the next replica has no place yet, where that is so."""
    failures: Mapped[int]
    opens: Mapped[int]
    retry_at: Mapped[datetime | None]
    """Set while the circuit is open: no start before this time, and then only one that something asks for."""
    last_wake_at: Mapped[datetime | None]
    asked_at: Mapped[datetime | None]
    """When `desired` was last raised: a start is timed from here."""
    last_ready_at: Mapped[datetime | None]
    start_s: Mapped[float | None]
    """Seconds from decision to ready: what the last starts of its artifact took (starts.learned_s)."""
    promised_until: Mapped[datetime | None]
    """Someone who does not wait counts on a start until then: who woke it by hand, or was told to come again."""
    wake_at: Mapped[datetime | None]
    """While it sleeps: when it is to be woken ahead of the request that is expected."""
    evicted_at: Mapped[datetime | None]
    """When it last had to make room for another endpoint: it is not woken ahead until it has had work again."""
    deleted_at: Mapped[datetime | None]


class RevisionTable(Row):
    """What the replicas of one generation run. Never changed after it was written."""

    __tablename__ = "revisions"
    __table_args__ = (UniqueConstraint("endpoint_id", "number", name="uq_revisions_endpoint_id_number"),)

    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("endpoints.id"))
    number: Mapped[int]
    spec: Mapped[dict[str, Any]]


class ReplicaTable(Row):
    """One copy, on one node. Its status is written by `states.transition` only."""

    __tablename__ = "replicas"
    __table_args__ = (
        # whatever two loops believe, no place of a generation is ever filled twice
        Index(
            "uq_replicas_place",
            "endpoint_id",
            "generation",
            "ordinal",
            unique=True,
            postgresql_where=text("intent = 'run' and status not in ('stopped', 'failed')"),
        ),
        Index("ix_replicas_alive", "node_id", postgresql_where=ALIVE),
        Index("ix_replicas_endpoint_id", "endpoint_id", "created_at"),
        Index("ix_replicas_artifact", text("(spec ->> 'artifact')"), "ready_at"),
    )

    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("endpoints.id"))
    generation: Mapped[int]
    ordinal: Mapped[int]
    node_id: Mapped[UUID] = mapped_column(ForeignKey("nodes.id"))
    device: Mapped[str]
    status: Mapped[ReplicaPhase] = mapped_column(String)
    intent: Mapped[Intent] = mapped_column(String)
    reason: Mapped[str]
    spec: Mapped[dict[str, Any]]
    promised_bytes: Mapped[int] = mapped_column(BigInteger)
    """What placement reserved on the device; `memory_bytes` is what the agent sees it take."""
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    peak_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"), default=0)
    fixed_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"), default=0)
    """The most that was resident beside its KV cache: what corrects later estimates. 0 where it is not known."""
    url: Mapped[str | None]
    token: Mapped[str | None]
    pid: Mapped[int | None] = mapped_column(BigInteger)
    slots: Mapped[int]
    max_model_len: Mapped[int]
    spans: Mapped[dict[str, Any]]
    """Seconds by name: decide and place are the control plane's, ready is the whole, the rest is the agent's."""
    ready_at: Mapped[datetime | None]
    released_at: Mapped[datetime | None]
    """When it was told to drain or stop."""
    ended_at: Mapped[datetime | None]


class StartTable(TenantRow):
    """One start of a replica. It outlives the replica and its endpoint: what was measured stays measured."""

    __tablename__ = "starts"
    __table_args__ = (
        Index("ix_starts_replica_id", "replica_id", "created_at"),
        Index("ix_starts_artifact", "artifact", "created_at"),
        Index("ix_starts_created_at", "created_at"),
    )

    replica_id: Mapped[UUID]
    endpoint: Mapped[str]
    node: Mapped[str]
    device: Mapped[str]
    artifact: Mapped[str]
    tier: Mapped[str]
    """Where its weights were: parked, cached (on the node's disk) or remote."""
    outcome: Mapped[str]
    """starting, then ready, failed, or stopped by someone."""
    reason: Mapped[str]
    spans: Mapped[dict[str, Any]]
    """Seconds by name: decide and place are the control plane's, the others the node's and the runner's."""
    total_s: Mapped[float | None]
    """From the decision to ready."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    bound_s: Mapped[float | None]
    """What reading `bytes` takes at the node's measured speed: no start can be faster."""
    ended_at: Mapped[datetime | None]


class DemandTable(Base):
    """The last word of one gateway on one endpoint."""

    __tablename__ = "demand"

    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("endpoints.id"), primary_key=True)
    gateway: Mapped[str] = mapped_column(primary_key=True)
    running: Mapped[int]
    waiting: Mapped[int]
    last_work_at: Mapped[datetime | None]
    """When its last work ended. None: this gateway never saw any."""
    reported_at: Mapped[datetime]
    kv_tokens: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    samples: Mapped[list[Any]] = mapped_column(JSONB, default=list, server_default=text("'[]'"))
    """Of its counters over the last minute: [Unix seconds, busy_s, prefill_tokens, decode_tokens] each. Before them
    stand the minutes before that one: minutes.py."""
    latency: Mapped[dict[str, Any] | None]
    """What its last answers took: wire.routes.Latency."""


class GatewayTable(Base):
    """A gateway, and when it was last heard. It names only endpoints whose work changed: others are as they were."""

    __tablename__ = "gateways"

    name: Mapped[str] = mapped_column(primary_key=True)
    heard_at: Mapped[datetime]


class KeepaliveTable(Base):
    """What an `idle_auto` endpoint's idle times were, and what follows for the one that has begun."""

    __tablename__ = "keepalives"

    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("endpoints.id"), primary_key=True)
    history: Mapped[dict[str, Any]]
    began_at: Mapped[datetime | None]
    """Since when it has been without work. None: it works, or never did."""
    plan: Mapped[dict[str, Any] | None]
    """Made once for the idle time since `began_at`."""


class BearingTable(Base):
    """What one replica of an artifact bears on a kind of device while it holds a latency."""

    __tablename__ = "bearings"

    artifact: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    """`cpu` or `cuda`."""
    slo: Mapped[str] = mapped_column(primary_key=True)
    """`slo.Slo.word`: the same for all endpoints that ask for the same."""
    prefill_per_s: Mapped[float]
    decode_per_s: Mapped[float]
    source: Mapped[str]
    """measured (when the artifact was made) or learned (from what was served)."""
    changed_at: Mapped[datetime]


CURRENT_REVISION = (RevisionTable.endpoint_id == EndpointTable.id) & (RevisionTable.number == EndpointTable.revision)
"""What joins an endpoint with the revision that it serves."""
