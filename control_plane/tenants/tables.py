"""The table of API keys. That of tenants stands in db/base.py, because every row refers to it."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import String, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import TenantRow
from data_plane.wire.keys import Priority


class KeyTable(TenantRow):
    """An API key: all but its secret, of which the SHA-256 is kept."""

    __tablename__ = "api_keys"

    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    secret_sha256: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    priority: Mapped[Priority] = mapped_column(String, server_default="normal")
    max_concurrency: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[UUID | None]
