"""The table of API keys. That of tenants stands in db/base.py, because every row refers to it."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import TenantRow


class KeyTable(TenantRow):
    """An API key: all but its secret, of which the SHA-256 is kept."""

    __tablename__ = "api_keys"

    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    secret_sha256: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[UUID | None]
