"""Keys have a priority class and limits; a start may be promised to clients who were told to come again."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LIMITS = ("max_concurrency", "requests_per_minute", "tokens_per_minute")


def upgrade() -> None:
    """To this revision: the keys there are become normal ones without limits."""
    op.add_column("api_keys", sa.Column("priority", sa.String(), nullable=False, server_default="normal"))
    for name in LIMITS:
        op.add_column("api_keys", sa.Column(name, sa.Integer()))
    op.add_column("endpoints", sa.Column("promised_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Back to revision 0003: limits and classes are forgotten."""
    op.drop_column("endpoints", "promised_until")
    for name in (*LIMITS, "priority"):
        op.drop_column("api_keys", name)
