"""Memory is measured, decisions are rows with what they were made from, and endpoints have a priority."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
ZERO = sa.text("0")
MEASURED = ("peak_bytes", "fixed_bytes")


def upgrade() -> None:
    """To this revision: the replicas there are were not measured, and all endpoints are of normal priority."""
    op.add_column("endpoints", sa.Column("priority", sa.String(), nullable=False, server_default="normal"))
    for name in MEASURED:
        op.add_column("replicas", sa.Column(name, sa.BigInteger(), nullable=False, server_default=ZERO))
    op.create_index("ix_replicas_artifact", "replicas", [sa.text("(spec ->> 'artifact')"), "ready_at"])
    op.create_table(
        "measured_memory",
        sa.Column("artifact", sa.String(), primary_key=True),
        sa.Column("device_kind", sa.String(), primary_key=True),
        sa.Column("excess_bytes", sa.BigInteger(), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("inputs", postgresql.JSONB(), nullable=False),
        sa.Column("outcome", postgresql.JSONB(), nullable=False),
    )
    op.create_index("ix_decisions_subject", "decisions", ["tenant_id", "subject", "id"])
    op.create_index("ix_decisions_at", "decisions", ["at"])


def downgrade() -> None:
    """Back to revision 0006: decisions and what was measured are forgotten."""
    op.drop_table("decisions")
    op.drop_table("measured_memory")
    op.drop_index("ix_replicas_artifact", "replicas")
    for name in MEASURED:
        op.drop_column("replicas", name)
    op.drop_column("endpoints", "priority")
