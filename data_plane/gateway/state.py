"""Follows the control plane's routes and keys by long poll, and keeps the last ones while it is away.

Knows nothing of what the routes are for.
"""

import asyncio
from collections.abc import Callable

import structlog

from data_plane.gateway.control import Backoff, ControlClient, ControlUnavailable
from data_plane.wire.routes import GatewayState

_log = structlog.get_logger()


class StateFollower:
    """Calls `on_state` with each new state. A control plane that is away changes nothing: live endpoints serve on."""

    def __init__(self, control: ControlClient, on_state: Callable[[GatewayState], None]) -> None:
        self._control = control
        self._on_state = on_state
        self._version = ""

    async def run(self) -> None:
        """Follow until cancelled."""
        backoff = Backoff()
        unasked = Backoff(first_s=0.02, most_s=1.0)
        away = False
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            try:
                state = await self._control.state(self._version)
            except ControlUnavailable as error:
                pause_s = backoff.next_s()
                _log.warning("control_plane_away", reason=str(error), retry_in_s=round(pause_s, 2))
                away = True
                await asyncio.sleep(pause_s)
                continue
            backoff.reset()
            if away:
                _log.info("control_plane_back", version=state.version)
                away = False
            if state.version != self._version:
                self._version = state.version
                self._on_state(state)
            elif loop.time() - asked < 1.0:
                # the same again without the wait that was asked for: do not spin on it
                await asyncio.sleep(unasked.next_s())
                continue
            unasked.reset()
