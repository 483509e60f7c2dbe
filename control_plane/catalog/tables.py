"""The table of models: named sets of weights, each imported once into an artifact."""

from typing import Any

from sqlalchemy import BigInteger, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import TenantRow


class ModelTable(TenantRow):
    """A model; what its artifact holds is known once `status` is ready."""

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
    artifact: Mapped[str | None]
    """Digest, `sha256:…`."""
    artifact_bytes: Mapped[int | None] = mapped_column(BigInteger)
    dtype: Mapped[str | None]
    kv_bytes_per_token: Mapped[int | None] = mapped_column(BigInteger)
    shape: Mapped[dict[str, Any] | None]
    """Layers, hidden size, heads: what memory estimates are made from."""
