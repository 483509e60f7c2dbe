"""The lease row that says which process leads, and its epoch. Time is the database's. Knows nothing of the loops that
run under the lease."""

from datetime import datetime

from sqlalchemy import BigInteger, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import Base
from control_plane.errors import StaleEpoch

LEADER = "leader"
RENEW_S = 3.0
EXPIRY_S = 10.0

_TAKE = text("""
    insert into leases (name, holder, epoch, expires_at)
    values (:name, :holder, 1, clock_timestamp() + make_interval(secs => :expiry_s))
    on conflict (name) do update
       set holder = excluded.holder, epoch = leases.epoch + 1, expires_at = excluded.expires_at
     where leases.holder = excluded.holder or leases.expires_at < clock_timestamp()
    returning epoch
""")
_RENEW = text("""
    update leases set expires_at = clock_timestamp() + make_interval(secs => :expiry_s)
     where name = :name and holder = :holder and epoch = :epoch returning epoch
""")
_RELEASE = text("""
    update leases set expires_at = clock_timestamp() where name = :name and holder = :holder and epoch = :epoch
""")
_READ = text("select epoch from leases where name = :name for share")


class LeaseRow(Base):
    """One lease by name."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]


async def acquire(session: AsyncSession, holder: str, *, expiry_s: float = EXPIRY_S, name: str = LEADER) -> int | None:
    """The new epoch, or None while another holder's lease runs. The same holder, restarted, gets it at once."""
    values = {"name": name, "holder": holder, "expiry_s": expiry_s}
    return (await session.execute(_TAKE, values)).scalar_one_or_none()


async def renew(
    session: AsyncSession, holder: str, epoch: int, *, expiry_s: float = EXPIRY_S, name: str = LEADER
) -> bool:
    """False when the lease was taken over."""
    values = {"name": name, "holder": holder, "epoch": epoch, "expiry_s": expiry_s}
    return (await session.execute(_RENEW, values)).scalar_one_or_none() is not None


async def release(session: AsyncSession, holder: str, epoch: int, *, name: str = LEADER) -> None:
    """Lets another process take over at once; nothing happens if one already has."""
    await session.execute(_RELEASE, {"name": name, "holder": holder, "epoch": epoch})


async def fence(session: AsyncSession, epoch: int, *, name: str = LEADER) -> None:
    """Raises StaleEpoch unless `epoch` is the current one; until this transaction ends nobody can take over."""
    current = (await session.execute(_READ, {"name": name})).scalar_one_or_none()
    if current != epoch:
        raise StaleEpoch(f"the lease '{name}'", epoch)
