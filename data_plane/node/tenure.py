"""How long this node may go on without word from the control plane. Time is that since boot, suspensions included: it
is never set. Knows nothing of replicas; what follows from its end is the agent's business.

The rule of which this is one half stands in `control_plane/nodes/lease.py`.
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from data_plane.node.identity import boot_id
from data_plane.node.records import write_private
from data_plane.wire.fleet import Peer

ASKING, KNOCKING, ENDING = 0.2, 0.1, 0.1
"""Of the lease: how long its peers may take to say what they hear, the control plane to answer one last report, and its
runners from SIGTERM to SIGKILL."""
HEARING = 0.5
"""Of the lease: who heard the control plane so recently hears it. Reports go every third of the lease, so one that
died was heard by no node later than a third after it was by another: when the first lease is over, none hears it."""
FINDING = 0.5
"""Of the lease: so long after others have found a control plane that was away, this node may still look for it."""


def since_boot_s() -> float:
    """A clock that runs on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Kept(msgspec.Struct, frozen=True):
    """What is on disk (mode 0600), so that an agent started anew is bound by what the one before was told."""

    boot: str
    heard_at: float
    lease_s: float
    peers: tuple[Peer, ...]


class Tenure:
    """The lease of one node. It runs from when the last report that was answered had been sent."""

    def __init__(self, path: Path, clock: Callable[[], float] = since_boot_s) -> None:
        self.lease_s = 0.0
        self.peers: tuple[Peer, ...] = ()
        self._path = path
        self._clock = clock
        self._heard_at: float | None = None
        self._back_at: float | None = None

    def now(self) -> float:
        """What `heard` takes."""
        return self._clock()

    def resume(self) -> None:
        """Goes on with the lease that an agent before this one had, where the machine has not been started since."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError):
            return  # there was none, or nobody else was there to be replaced by
        if kept.boot == boot_id():
            self._heard_at, self.lease_s, self.peers = kept.heard_at, kept.lease_s, kept.peers

    def told(self, lease_s: float, peers: tuple[Peer, ...]) -> None:
        """The terms, and who else there is."""
        if (lease_s, peers) != (self.lease_s, self.peers):
            self.lease_s, self.peers = lease_s, peers
            self._keep()

    def heard(self, asked_at: float) -> None:
        """The control plane answered a report that was sent at `asked_at`."""
        if self.lease_s and self._heard_at is not None and asked_at - self._heard_at > self.lease_s:
            self._back_at = asked_at
        self._heard_at = max(asked_at, self._heard_at or 0.0)
        self._keep()

    @property
    def left_s(self) -> float | None:
        """Seconds of the lease that are left, below zero when it is over. None: nothing limits it."""
        if self._heard_at is None or not self.lease_s or not self.peers:
            return None
        return self._heard_at + self.lease_s - self._clock()

    @property
    def heard_s(self) -> float | None:
        """How long ago; None where this boot of the machine has not heard it."""
        return None if self._heard_at is None else max(0.0, self._clock() - self._heard_at)

    @property
    def back_s(self) -> float | None:
        """How long ago it was heard again after a silence that was longer than the lease; None where there was none."""
        return None if self._back_at is None else max(0.0, self._clock() - self._back_at)

    def _keep(self) -> None:
        if self._heard_at is None or not self.peers:
            self._path.unlink(missing_ok=True)
            return
        write_private(self._path, msgspec.json.encode(Kept(boot_id(), self._heard_at, self.lease_s, self.peers)))
