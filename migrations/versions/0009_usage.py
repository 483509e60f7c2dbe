"""What requests used: by the hour to be read, and one by one to be replayed."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
COUNTS = ("requests", "refused", "failed", "cancelled", "cold")
SUMS = ("prompt_tokens", "cached_tokens", "completion_tokens", "duration_ms")


def upgrade() -> None:
    """To this revision: nothing is known of requests before it."""
    op.create_table(
        "usage_hours",
        sa.Column("tenant_id", sa.Uuid(), primary_key=True),
        sa.Column("endpoint", sa.String(), primary_key=True),
        sa.Column("hour", TIME, primary_key=True),
        sa.Column("key_id", sa.String(), primary_key=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*COUNTS, *SUMS)),
        sa.Column("first", postgresql.ARRAY(sa.Integer()), nullable=False),
    )
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])
    op.create_table(
        "usage_blocks",
        sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("endpoint", "key_id")),
        *(sa.Column(name, TIME, nullable=False) for name in ("first_at", "last_at")),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
    )
    op.create_index("ix_usage_blocks_tenant_id", "usage_blocks", ["tenant_id", "last_at"])
    op.create_index("ix_usage_blocks_last_at", "usage_blocks", ["last_at"])
    op.create_table(
        "usage_senders",
        sa.Column("gateway", sa.String(), primary_key=True),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("heard_at", TIME, nullable=False),
    )


def downgrade() -> None:
    """Back to revision 0008: what was used is forgotten."""
    for table in ("usage_senders", "usage_blocks", "usage_hours"):
        op.drop_table(table)
