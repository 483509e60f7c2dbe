"""Tenants, keys, events, models, jobs and the lease."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
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


def upgrade() -> None:
    """To this revision."""
    op.create_table("tenants", *_row(sa.Column("name", sa.String(), nullable=False, unique=True)))
    op.create_table(
        "api_keys",
        *_row(
            _tenant(),
            sa.Column("name", sa.String(), nullable=False),
            sa.Column("prefix", sa.String(), nullable=False, unique=True),
            sa.Column("secret_sha256", sa.String(), nullable=False),
            sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
            sa.Column("expires_at", TIME),
            sa.Column("revoked_at", TIME),
            sa.Column("revoked_by", sa.Uuid()),
        ),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        sa.Column("at", TIME, nullable=False, server_default=NOW),
        sa.Column("tenant_id", sa.Uuid(), nullable=False, index=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False, index=True),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
    )
    _models()
    _jobs()


def _models() -> None:
    op.create_table(
        "models",
        *_row(
            _tenant(),
            sa.Column("name", sa.String(), nullable=False),
            sa.Column("source", sa.String(), nullable=False),
            sa.Column("status", sa.String(), nullable=False),
            sa.Column("error", sa.String()),
            sa.Column("architecture", sa.String()),
            sa.Column("parameters", sa.BigInteger()),
            sa.Column("context_length", sa.Integer()),
            sa.Column("vocab_size", sa.Integer()),
            sa.Column("chat_template", sa.String()),
            sa.Column("licence", sa.String()),
            sa.Column("source_bytes", sa.BigInteger()),
            sa.Column("source_sha256", sa.String()),
            sa.Column("artifact", sa.String()),
            sa.Column("artifact_bytes", sa.BigInteger()),
            sa.Column("dtype", sa.String()),
            sa.Column("kv_bytes_per_token", sa.BigInteger()),
            sa.Column("shape", postgresql.JSONB()),
        ),
        sa.UniqueConstraint("tenant_id", "name", name="uq_models_tenant_id_name"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        *_row(
            _tenant(),
            sa.Column("kind", sa.String(), nullable=False),
            sa.Column("subject", sa.Uuid(), nullable=False, index=True),
            sa.Column("name", sa.String(), nullable=False),
            sa.Column("payload", postgresql.JSONB(), nullable=False),
            sa.Column("status", sa.String(), nullable=False, index=True),
            sa.Column("stage", sa.String()),
            sa.Column("progress", postgresql.JSONB()),
            sa.Column("attempts", sa.Integer(), nullable=False),
            sa.Column("error", sa.String()),
            sa.Column("result", postgresql.JSONB()),
            sa.Column("worker", sa.String()),
            sa.Column("lease_until", TIME),
            sa.Column("heartbeat_at", TIME),
            sa.Column("hinted_at", TIME),
            sa.Column("hints", sa.Integer(), nullable=False),
            sa.Column("started_at", TIME),
            sa.Column("ended_at", TIME),
        ),
    )


def downgrade() -> None:
    """Back to an empty database."""
    for table in ("jobs", "models", "leases", "events", "api_keys", "tenants"):
        op.drop_table(table)
