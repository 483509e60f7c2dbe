"""Machines join with one-time tokens and are cordoned, drained and removed; a removed one's name may be used again."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
FLAGS = ("joined", "cordoned", "draining")


def upgrade() -> None:
    """To this revision: the nodes there are came with a key, and take replicas."""
    op.add_column("nodes", sa.Column("machine", sa.String(), nullable=False, server_default=""))
    for name in FLAGS:
        op.add_column("nodes", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("nodes", sa.Column("steady_at", TIME))
    op.add_column("nodes", sa.Column("removed_at", TIME))
    op.drop_constraint("uq_nodes_tenant_id_name", "nodes", type_="unique")
    op.create_index(
        "uq_nodes_name", "nodes", ["tenant_id", "name"], unique=True, postgresql_where=sa.text("removed_at is null")
    )
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("tenant_id", sa.Uuid(), sa.ForeignKey("tenants.id"), nullable=False, index=True),
        sa.Column("prefix", sa.String(), nullable=False, unique=True),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("used_at", TIME),
        sa.Column("used_by", sa.String()),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.clock_timestamp()),
    )
    op.create_table(
        "signing_keys",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("secret", sa.String(), nullable=False),
    )


def downgrade() -> None:
    """Back to the revision before: removed nodes' names get their ids behind them, so that none is there twice."""
    op.drop_table("signing_keys")
    op.drop_table("join_tokens")
    op.execute("update nodes set name = name || '-' || id where removed_at is not null")
    op.drop_index("uq_nodes_name", "nodes")
    op.create_unique_constraint("uq_nodes_tenant_id_name", "nodes", ["tenant_id", "name"])
    for name in ("removed_at", "steady_at", *FLAGS, "machine"):
        op.drop_column("nodes", name)
