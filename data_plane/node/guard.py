"""Ends this node's replicas before others may be given their places: when its lease is over and somebody else hears the
control plane, or does not say. Where nobody hears it nobody decides, and the node goes on serving.

Knows nothing of HTTP; the rule stands in `control_plane/nodes/lease.py`.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from data_plane.node.fleet import Fleet
from data_plane.node.peers import Peers
from data_plane.node.tenure import ASKING, ENDING, KNOCKING, Tenure
from data_plane.wire.fleet import DesiredState

log = structlog.get_logger()
LOOK_S = 1.0
"""How soon it is noticed that there are terms, or other ones."""


async def _nobody(_within_s: float) -> None:
    """Before there is an agent."""


class Guard:
    """Watches the lease of one node. `heard` and `told` are for the agent's loops to call; `knock` is theirs: it tries
    within so many seconds to be heard, and calls `heard` where it is."""

    def __init__(self, tenure: Tenure, peers: Peers, fleet: Fleet) -> None:
        self._tenure = tenure
        self._peers = peers
        self._fleet = fleet
        self.knock: Callable[[float], Awaitable[None]] = _nobody

    def resume(self) -> None:
        """Goes on where an agent before this one was."""
        self._tenure.resume()
        self._peers.all = self._tenure.peers

    def now(self) -> float:
        """To be taken before a report is sent, for `heard`."""
        return self._tenure.now()

    def heard(self, asked_at: float) -> None:
        """A report that was sent at `asked_at` was taken. Raises OSError where the lease cannot be noted."""
        self._tenure.heard(asked_at)
        if self._fleet.is_fenced:
            log.info("node.unfenced")
            self._fleet.lift()

    def told(self, state: DesiredState) -> None:
        """What the control plane says of the other nodes and of the lease."""
        self._peers.all = state.peers
        self._tenure.told(state.lease_s, state.peers)

    def replaced(self, reason: str) -> None:
        """Another agent has this node's name, or it was removed: what runs here is not wanted any more."""
        if not self._fleet.is_fenced:
            self._fleet.fence(reason, max(1.0, self._tenure.lease_s * ENDING))

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            left_s = self._tenure.left_s
            if left_s is None or self._fleet.is_fenced:
                await asyncio.sleep(LOOK_S)
            elif left_s > 0:
                await asyncio.sleep(min(left_s, LOOK_S))
            else:
                await self._judge()

    async def _judge(self) -> None:
        lease_s = self._tenure.lease_s
        replaceable = await self._peers.may_be_replaced(lease_s, lease_s * ASKING)
        if replaceable:
            # it may be this node alone that has not tried for a moment
            await self.knock(lease_s * KNOCKING)
        left_s = self._tenure.left_s
        if left_s is None or left_s > 0:
            return  # it was heard meanwhile
        if replaceable:
            self._fleet.fence(
                f"The node lost the control plane for {lease_s:g} s and ended its replicas, so that others may take "
                "their places.",
                lease_s * ENDING,
            )
            return
        log.warning("lease.over", peers=len(self._peers.all), hint="no node hears the control plane: all go on")
        await asyncio.sleep(lease_s * ASKING)
