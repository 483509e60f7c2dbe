"""A model has several artifacts, one per quantization."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    """To this revision: the artifact that a model has now is its unquantized one."""
    op.create_table(
        "model_artifacts",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("model_id", sa.Uuid(), sa.ForeignKey("models.id", ondelete="CASCADE"), nullable=False),
        sa.Column("quantization", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("kv_bytes_per_token", sa.BigInteger(), nullable=False),
        sa.Column("quality", postgresql.JSONB()),
        sa.Column("speed", postgresql.JSONB()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=NOW),
        sa.UniqueConstraint("model_id", "quantization", name="uq_model_artifacts_model_id_quantization"),
    )
    op.execute(
        "insert into model_artifacts"
        " (id, model_id, quantization, digest, bytes, dtype, kv_bytes_per_token, created_at)"
        " select gen_random_uuid(), id, 'none', artifact, coalesce(artifact_bytes, 0), coalesce(dtype, 'bfloat16'),"
        " coalesce(kv_bytes_per_token, 0), created_at from models where artifact is not null"
    )
    for column in ("artifact", "artifact_bytes", "dtype", "kv_bytes_per_token"):
        op.drop_column("models", column)


def downgrade() -> None:
    """Back to revision 0002, which knows no quantized artifacts: models that have no other must be added again."""
    op.add_column("models", sa.Column("artifact", sa.String()))
    op.add_column("models", sa.Column("artifact_bytes", sa.BigInteger()))
    op.add_column("models", sa.Column("dtype", sa.String()))
    op.add_column("models", sa.Column("kv_bytes_per_token", sa.BigInteger()))
    op.execute(
        "update models set artifact = a.digest, artifact_bytes = a.bytes, dtype = a.dtype,"
        " kv_bytes_per_token = a.kv_bytes_per_token"
        " from model_artifacts a where a.model_id = models.id and a.quantization = 'none'"
    )
    op.execute(
        "update models set status = 'failed', error = 'It had no unquantized artifact.'"
        " where status = 'ready' and artifact is null"
    )
    op.drop_table("model_artifacts")
