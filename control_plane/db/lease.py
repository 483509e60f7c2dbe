"""The lease row that says which process leads, and its epoch. Time is the database's. Knows nothing of the loops that
run under the lease.

A standby that was promoted may lack the last writes, and with them an epoch that was handed out. So a holder passes the
highest epoch it has seen when it asks for another, a fence looks at the holder as well as at the epoch, and the
database's own history (PostgreSQL's timeline, one more with each promotion) is kept beside the leases.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from control_plane.db.base import Base
from control_plane.errors import StaleEpoch

LEADER = "leader"
HISTORY = "history"
RENEW_S = 3.0
EXPIRY_S = 10.0

_TAKE = text("""
    insert into leases (name, holder, epoch, expires_at)
    values (:name, :holder, :above + 1, clock_timestamp() + make_interval(secs => :expiry_s))
    on conflict (name) do update
       set holder = excluded.holder, epoch = greatest(leases.epoch, :above) + 1, expires_at = excluded.expires_at
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
_FENCE = text("""
    select epoch, holder, set_config('idle_in_transaction_session_timeout', :idle_ms, true)
      from leases where name = :name for share
""")
_HISTORY = text("""
    with now as (
             select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int::bigint as timeline
         ),
         known as (select epoch from leases where name = :name),
         kept as (
             insert into leases (name, holder, epoch, expires_at)
             select :name, 'postgresql', timeline, clock_timestamp() from now
             on conflict (name) do update set epoch = excluded.epoch, expires_at = excluded.expires_at
              where leases.epoch <> excluded.epoch
         )
    select timeline, (select epoch from known), clock_timestamp() from now
""")


class LeaseRow(Base):
    """One lease by name."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime]


async def acquire(
    session: AsyncSession, holder: str, *, expiry_s: float = EXPIRY_S, name: str = LEADER, above: int = 0
) -> int | None:
    """The new epoch, or None while another holder's lease runs. The same holder, restarted, gets it at once. The epoch
    is greater than `above`, whatever the database has forgotten."""
    values = {"name": name, "holder": holder, "expiry_s": expiry_s, "above": above}
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


async def fence(
    session: AsyncSession, epoch: int, *, holder: str | None = None, expiry_s: float = EXPIRY_S, name: str = LEADER
) -> None:
    """Raises StaleEpoch unless `epoch` is the current one, and `holder`'s; until this transaction ends nobody can take
    over. A holder that is stopped in the midst of it loses the transaction, or nobody could for a long time."""
    values = {"name": name, "idle_ms": str(max(1, round(1000 * expiry_s)))}
    row = (await session.execute(_FENCE, values)).one_or_none()
    if row is None or row[0] != epoch or (holder is not None and row[1] != holder):
        raise StaleEpoch(f"the lease '{name}'", epoch)


@dataclass(frozen=True)
class History:
    """`timeline` is PostgreSQL's own count of promotions; `known` is what it was when last looked at, None: never.
    `now`: the database's time."""

    timeline: int
    known: int | None
    now: datetime

    @property
    def is_another(self) -> bool:
        """Whether a standby has taken over since, which may lack what was written last."""
        return self.known is not None and self.known != self.timeline


async def history(session: AsyncSession) -> History:
    """Looks, and keeps what it saw. Raises what the driver raises where the server has no such functions."""
    timeline, known, now = (await session.execute(_HISTORY, {"name": HISTORY})).one()
    return History(timeline, known, now)
