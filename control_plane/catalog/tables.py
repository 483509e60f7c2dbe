"""The tables of models, named sets of weights, and of the artifacts that were made of each: one per quantization."""

from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import Row, TenantRow


class ModelTable(TenantRow):
    """A model; what is true of all its artifacts is known once `status` is ready."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("tenant_id", "name", name="uq_models_tenant_id_name"),)

    name: Mapped[str]
    source: Mapped[str]
    status: Mapped[str]
    """importing, ready or failed."""
    error: Mapped[str | None]
    architecture: Mapped[str | None]
    parameters: Mapped[int | None] = mapped_column(BigInteger)
    context_length: Mapped[int | None]
    vocab_size: Mapped[int | None]
    chat_template: Mapped[str | None]
    licence: Mapped[str | None]
    source_bytes: Mapped[int | None] = mapped_column(BigInteger)
    source_sha256: Mapped[str | None]
    shape: Mapped[dict[str, Any] | None]
    """Layers, hidden size, heads: what memory estimates are made from."""


class ArtifactTable(Row):
    """A model's weights, ready to serve, in one quantization. It goes with its model."""

    __tablename__ = "model_artifacts"
    __table_args__ = (UniqueConstraint("model_id", "quantization", name="uq_model_artifacts_model_id_quantization"),)

    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    quantization: Mapped[str]
    """none, int8, int4 or fp8; see quantization.py."""
    digest: Mapped[str]
    """`sha256:…`."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    dtype: Mapped[str]
    """Of what is not quantized; `kv_bytes_per_token` is for values of its width."""
    kv_bytes_per_token: Mapped[int] = mapped_column(BigInteger)
    quality: Mapped[dict[str, Any] | None]
    """Against the unquantized weights; see schemas.Artifact for the figures."""
    speed: Mapped[dict[str, Any] | None]
    """Tokens per second by case, as measured when it was made."""
