"""The bases of every table and the types of their columns. Knows nothing of any slice's tables but
that rows belong to tenants."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from advanced_alchemy.base import CommonTableAttributes, convention
from advanced_alchemy.types import DateTimeUTC
from sqlalchemy import ForeignKey, MetaData, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(CommonTableAttributes, AsyncAttrs, DeclarativeBase):
    """A table; the metadata that migrations are compared with. The key is the subclass's business."""

    # not advanced-alchemy's own base: the JSON type in its registry does not work with SQLAlchemy 2.1
    metadata = MetaData(naming_convention=convention)
    type_annotation_map = {datetime: DateTimeUTC(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012


class Row(Base):
    """A row with a random id, so that nobody finds a neighbour's by counting."""

    __abstract__ = True

    id: Mapped[UUID] = mapped_column(default=uuid4, primary_key=True, sort_order=-100)
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), sort_order=100)


class TenantTable(Row):
    """Whoever owns models, endpoints and keys."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(unique=True)


class TenantRow(Row):
    """A row that belongs to one tenant; every query for a caller names the tenant."""

    __abstract__ = True

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), index=True, sort_order=-90)


def iso(at: datetime | None) -> str | None:
    """ISO 8601 in UTC with milliseconds and `Z`, as every answer gives times."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
