"""Nodes, endpoints, revisions, replicas and demand."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
NOW = sa.text("clock_timestamp()")


def _row(*columns: sa.Column) -> list[sa.Column]:
    return [
        sa.Column("id", sa.Uuid(), primary_key=True),
        *columns,
        sa.Column("created_at", TIME, nullable=False, server_default=NOW),
    ]


def _tenant() -> sa.Column:
    return sa.Column("tenant_id", sa.Uuid(), sa.ForeignKey("tenants.id"), nullable=False, index=True)


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.String(), nullable=False)


def _int(name: str) -> sa.Column:
    return sa.Column(name, sa.Integer(), nullable=False)


def _big(name: str) -> sa.Column:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _json(name: str) -> sa.Column:
    return sa.Column(name, postgresql.JSONB(), nullable=False)


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "nodes",
        *_row(
            _tenant(), _text("name"), _big("epoch"), _text("status"), _text("host"), _text("agent_url"),
            _text("agent_token"), _json("devices"), _int("cpus"), _big("memory_bytes"), _big("memory_free_bytes"),
            _text("version"), sa.Column("last_seen_at", TIME, nullable=False),
        ),
        sa.UniqueConstraint("tenant_id", "name", name="uq_nodes_tenant_id_name"),
    )  # fmt: skip
    _endpoints()
    _replicas()
    op.create_table(
        "demand",
        sa.Column("endpoint_id", sa.Uuid(), sa.ForeignKey("endpoints.id"), primary_key=True),
        sa.Column("gateway", sa.String(), primary_key=True),
        _int("running"),
        _int("waiting"),
        sa.Column("last_work_at", TIME),
        sa.Column("reported_at", TIME, nullable=False),
    )


def _endpoints() -> None:
    op.create_table(
        "endpoints",
        *_row(
            _tenant(),
            _text("name"),
            sa.Column("model_id", sa.Uuid(), sa.ForeignKey("models.id"), index=True),
            _text("model"),
            _int("revision"),
            _int("min_replicas"),
            _int("max_replicas"),
            sa.Column("idle_s", sa.Float(), nullable=False),
            _int("desired"),
            _text("state"),
            _text("reason"),
            sa.Column("obstacle", sa.String()),
            _int("failures"),
            _int("opens"),
            sa.Column("retry_at", TIME),
            sa.Column("last_wake_at", TIME),
            sa.Column("asked_at", TIME),
            sa.Column("last_ready_at", TIME),
            sa.Column("start_s", sa.Float()),
            sa.Column("deleted_at", TIME),
        ),
    )
    op.create_index(
        "uq_endpoints_name",
        "endpoints",
        ["tenant_id", "name"],
        unique=True,
        postgresql_where=sa.text("deleted_at is null"),
    )
    op.create_table(
        "revisions",
        *_row(
            sa.Column("endpoint_id", sa.Uuid(), sa.ForeignKey("endpoints.id"), nullable=False),
            _int("number"),
            _json("spec"),
        ),
        sa.UniqueConstraint("endpoint_id", "number", name="uq_revisions_endpoint_id_number"),
    )


def _replicas() -> None:
    op.create_table(
        "replicas",
        *_row(
            sa.Column("endpoint_id", sa.Uuid(), sa.ForeignKey("endpoints.id"), nullable=False),
            _int("generation"),
            _int("ordinal"),
            sa.Column("node_id", sa.Uuid(), sa.ForeignKey("nodes.id"), nullable=False),
            _text("device"),
            _text("status"),
            _text("intent"),
            _text("reason"),
            _json("spec"),
            _big("promised_bytes"),
            _big("memory_bytes"),
            sa.Column("url", sa.String()),
            sa.Column("token", sa.String()),
            sa.Column("pid", sa.BigInteger()),
            _int("slots"),
            _int("max_model_len"),
            _json("spans"),
            sa.Column("ready_at", TIME),
            sa.Column("released_at", TIME),
            sa.Column("ended_at", TIME),
        ),
    )
    alive = "status not in ('stopped', 'failed')"
    op.create_index(
        "uq_replicas_place",
        "replicas",
        ["endpoint_id", "generation", "ordinal"],
        unique=True,
        postgresql_where=sa.text(f"intent = 'run' and {alive}"),
    )
    op.create_index("ix_replicas_alive", "replicas", ["node_id"], postgresql_where=sa.text(alive))
    op.create_index("ix_replicas_endpoint_id", "replicas", ["endpoint_id", "created_at"])


def downgrade() -> None:
    """Back to revision 0001."""
    for table in ("demand", "replicas", "revisions", "endpoints", "nodes"):
        op.drop_table(table)
