"""A ledger of starts: one row for each time that a replica came up, and what a node reads its memory with."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """To this revision: the ledger begins empty."""
    op.add_column("nodes", sa.Column("read_bytes_per_s", sa.Float(), nullable=False, server_default="0"))
    op.create_table(
        "starts",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), sa.ForeignKey("tenants.id"), nullable=False, index=True),
        sa.Column("replica_id", sa.Uuid(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("artifact", sa.String(), nullable=False),
        sa.Column("tier", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("spans", postgresql.JSONB(), nullable=False),
        sa.Column("total_s", sa.Float()),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("bound_s", sa.Float()),
        sa.Column("ended_at", TIME),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.text("clock_timestamp()")),
    )
    op.create_index("ix_starts_replica_id", "starts", ["replica_id", "created_at"])
    op.create_index("ix_starts_artifact", "starts", ["artifact", "created_at"])
    op.create_index("ix_starts_created_at", "starts", ["created_at"])


def downgrade() -> None:
    """Back to revision 0004: the ledger is forgotten."""
    op.drop_table("starts")
    op.drop_column("nodes", "read_bytes_per_s")
