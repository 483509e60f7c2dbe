"""Endpoints may sleep by their own idle times and have a latency that they are to hold; gateways are heard apart from
what they report."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
JSON = postgresql.JSONB()
DEMAND = ("kv_tokens", "samples", "latency")


def upgrade() -> None:
    """To this revision: the endpoints there are keep their number of seconds."""
    op.add_column("endpoints", sa.Column("idle_auto", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("endpoints", sa.Column("wake_at", TIME))
    op.add_column("endpoints", sa.Column("evicted_at", TIME))
    op.add_column("endpoints", sa.Column("slo", JSON))
    op.create_index("ix_endpoints_wake_at", "endpoints", ["wake_at"], postgresql_where=sa.text("wake_at is not null"))
    op.create_table(
        "keepalives",
        sa.Column("endpoint_id", sa.Uuid(), sa.ForeignKey("endpoints.id"), primary_key=True),
        sa.Column("history", JSON, nullable=False),
        sa.Column("began_at", TIME),
        sa.Column("plan", JSON),
    )
    op.create_table(
        "gateways",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("heard_at", TIME, nullable=False),
    )
    op.create_table(
        "bearings",
        sa.Column("artifact", sa.String(), primary_key=True),
        sa.Column("device", sa.String(), primary_key=True),
        sa.Column("slo", sa.String(), primary_key=True),
        sa.Column("prefill_per_s", sa.Float(), nullable=False),
        sa.Column("decode_per_s", sa.Float(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
    )
    op.add_column("demand", sa.Column("kv_tokens", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("demand", sa.Column("samples", JSON, nullable=False, server_default=sa.text("'[]'")))
    op.add_column("demand", sa.Column("latency", JSON))


def downgrade() -> None:
    """Back to revision 0004: idle times and what replicas bear are forgotten; `auto` endpoints keep their constant."""
    for name in DEMAND:
        op.drop_column("demand", name)
    for name in ("bearings", "gateways", "keepalives"):
        op.drop_table(name)
    op.drop_index("ix_endpoints_wake_at", "endpoints")
    for name in ("slo", "evicted_at", "wake_at", "idle_auto"):
        op.drop_column("endpoints", name)
