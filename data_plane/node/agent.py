"""The agent's two loops: desired state in, reports out. Runners go on whatever becomes of the control plane.

Knows nothing of processes: the fleet has them.
"""

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass

import aiohttp
import msgspec
import structlog

from data_plane.node import devices
from data_plane.node.control import ControlClient, Refused, backoff_s
from data_plane.node.credential import REMOVED, Credential, Removed
from data_plane.node.fleet import Fleet
from data_plane.node.guard import Guard
from data_plane.wire.fleet import DesiredState, NodeRegistration, NodeReport, NodeWelcome

log = structlog.get_logger()
TROUBLE = (aiohttp.ClientError, TimeoutError, OSError, Refused, msgspec.DecodeError)
UNKNOWN_HERE = (404, 409)
"""The control plane forgot this node, or a later registration fenced this one off: register again."""
LULL_S = 0.1
"""How long a report of mere progress waits for something that matters more."""
FENCED_TIMES = 5
FENCED_WITHIN_S = 60.0
EXPIRED = "credential_expired"
TAKEN = "node_name_taken"
TAKEN_FOR_S = 30.0
"""So long the name may be another agent's (one that ended is still waited for) before this one gives up."""


class Fenced(Exception):
    """Another agent keeps registering under this name; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Tempo:
    """Seconds between heartbeats (oftener where the lease is short), and how long one poll may wait."""

    heartbeat_s: float = 3.0
    wait_s: float = 20.0


class Agent:
    """Keeps one node's fleet in step with the control plane."""

    def __init__(
        self,
        client: ControlClient,
        fleet: Fleet,
        registration: NodeRegistration,
        tempo: Tempo,
        guard: Guard,
        credential: Credential | None = None,
    ) -> None:
        self._client = client
        self._guard = guard
        guard.knock = self._knock
        self._credential = credential
        self._lease_s = 0.0
        self._fleet = fleet
        self._registration = registration
        self._tempo = tempo
        self._welcome: NodeWelcome | None = None
        self._epoch = 0
        self._sequence = 0
        self._registering = asyncio.Lock()
        self._has_reported = asyncio.Event()
        self._heard_again = asyncio.Event()
        self._fenced_at: deque[float] = deque(maxlen=FENCED_TIMES)

    @property
    def is_ready(self) -> bool:
        """Whether the control plane knows this node."""
        return self._welcome is not None

    async def run(self) -> None:
        """Runs until it is cancelled. Raises Fenced where another agent has taken this name for good, and Removed where
        the control plane knows this node no more; what runs here must then end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._guard.run(), name="guard")
                if self._credential is not None:
                    await self._credential.renew()
                    tasks.create_task(self._credential.run(), name="credential")
                tasks.create_task(self._follow_desired(), name="desired")
                tasks.create_task(self._report(), name="report")
        except* (Fenced, Removed) as group:
            ended = group.exceptions[0]
        else:
            return
        raise ended

    async def _follow_desired(self) -> None:
        # The control plane first hears what is left here, and ends the replicas that are gone. Asked before that, it
        # would name them once more, and a replica that it thinks is ready would be started at another address.
        await self._has_reported.wait()
        version, attempt = "", 0
        while True:
            welcome = await self._registered()
            try:
                state = await self._poll(welcome, version)
                if state.version != version and self._fleet.drops(state):
                    state = await self._confirmed(welcome)
                attempt = 0
            except TROUBLE as error:
                attempt = await self._trouble("desired", error, welcome, attempt)
                continue
            if state.version != version:
                try:
                    self._lease_s = state.lease_s
                    self._guard.told(state)
                    self._fleet.apply(state)
                except OSError as error:
                    # the keys could not be written (disk full): asked for again rather than taken as done
                    log.error("desired.not_applied", error=str(error))
                    await asyncio.sleep(1.0)
                    continue
                version = state.version

    async def _confirmed(self, welcome: NodeWelcome) -> DesiredState:
        """The desired state once the control plane has just been told what runs here: it does not name some of it, and
        may have forgotten it (its database was replaced by one that lacks the last writes). Nothing stops for that."""
        await self._tell(welcome, None)
        return await self._client.desired(welcome.node_id, "", 0.0, welcome.epoch)

    async def _poll(self, welcome: NodeWelcome, version: str) -> DesiredState:
        """Waits for another desired state; no longer than until the control plane is heard again after it was not, for
        then the connection that waits may lead nowhere."""
        self._heard_again.clear()
        asking = asyncio.ensure_future(
            self._client.desired(welcome.node_id, version, self._tempo.wait_s, welcome.epoch)
        )
        anew = asyncio.ensure_future(self._heard_again.wait())
        try:
            await asyncio.wait({asking, anew}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise TimeoutError("the control plane was not heard for a while, and is asked anew")
            return asking.result()
        finally:
            for task in (asking, anew):
                task.cancel()
            await asyncio.gather(asking, anew, return_exceptions=True)

    async def _report(self) -> None:
        attempt = 0
        while True:
            welcome = await self._registered()
            self._fleet.changed.clear()
            self._fleet.urgent.clear()
            try:
                # one that takes half the lease is better sent once more, on another connection
                await self._tell(welcome, max(1.0, self._lease_s / 2) if self._lease_s else None)
                if attempt:
                    self._heard_again.set()
                attempt = 0
                self._has_reported.set()
            except TROUBLE as error:
                attempt = await self._trouble("report", error, welcome, attempt)
                continue
            with contextlib.suppress(TimeoutError):  # nothing changed: the next report is only a heartbeat
                async with asyncio.timeout(self._heartbeat_s):
                    await self._fleet.changed.wait()
                # a start of a tenth of a second shall not be slowed down by reports of how far it is
                async with asyncio.timeout(LULL_S):
                    await self._fleet.urgent.wait()

    async def _tell(self, welcome: NodeWelcome, within_s: float | None) -> None:
        self._fleet.refresh()
        self._sequence += 1
        free_bytes = devices.memory().free_bytes
        report = NodeReport(welcome.epoch, free_bytes, self._fleet.observed(), self._sequence)
        asked_at = self._guard.now()
        await self._client.report(welcome.node_id, report, within_s)
        self._guard.heard(asked_at)

    async def _knock(self, within_s: float) -> None:
        welcome = self._welcome
        if welcome is None:
            return
        with contextlib.suppress(*TROUBLE):  # the loop of reports tells what it was
            async with asyncio.timeout(within_s):
                try:
                    await self._tell(welcome, within_s)
                except Refused as error:
                    if error.code != EXPIRED or self._credential is None:
                        raise
                    await self._credential.renew()
                    await self._tell(welcome, within_s)
                self._heard_again.set()

    @property
    def _heartbeat_s(self) -> float:
        return min(self._tempo.heartbeat_s, self._lease_s / 3 or self._tempo.heartbeat_s)

    async def _registered(self) -> NodeWelcome:
        async with self._registering:
            attempt, began = 0, time.monotonic()
            while self._welcome is None:
                try:
                    presented = msgspec.structs.replace(self._registration, epoch=self._epoch)
                    self._welcome = await self._client.register(presented)
                    self._epoch = self._welcome.epoch
                    if self._credential is not None:
                        self._credential.take(self._welcome.credential)
                    log.info("node.registered", node=self._welcome.node_id, epoch=self._welcome.epoch)
                except TROUBLE as error:
                    self._raise_if_hopeless(error, time.monotonic() - began)
                    log.warning("node.not_registered", error=str(error) or type(error).__name__, attempt=attempt)
                    await asyncio.sleep(backoff_s(attempt))
                    attempt += 1
            return self._welcome

    async def _trouble(self, doing: str, error: Exception, welcome: NodeWelcome, attempt: int) -> int:
        """Waits as long as it should before the next try; the count of tries, for the one after."""
        log.warning(f"{doing}.failed", error=str(error) or type(error).__name__, attempt=attempt)
        self._raise_if_hopeless(error, 0.0)
        if isinstance(error, Refused) and error.code == EXPIRED and self._credential is not None:
            await self._credential.renew()  # this machine was asleep, perhaps, or the control plane away
            return attempt + 1
        if isinstance(error, Refused) and error.status in UNKNOWN_HERE:
            if self._welcome is welcome:
                self._welcome = None
                if error.status == 409:
                    self._guard.replaced("Another agent has registered as this node, so its replicas were ended here.")
                    self._note_fenced()
            if attempt == 0:
                return 1
        await asyncio.sleep(backoff_s(attempt))
        return attempt + 1

    def _raise_if_hopeless(self, error: Exception, for_s: float) -> None:
        if not isinstance(error, Refused):
            return
        if self._credential is not None and error.status == 401 and error.code in REMOVED:
            if error.code == EXPIRED:
                return  # it is exchanged, or there the sentence will come
            raise Removed(error.text)
        if error.code == TAKEN and for_s > TAKEN_FOR_S:
            raise Fenced(error.text)

    def _note_fenced(self) -> None:
        now = time.monotonic()
        self._fenced_at.append(now)
        if len(self._fenced_at) == FENCED_TIMES and now - self._fenced_at[0] < FENCED_WITHIN_S:
            raise Fenced(
                f"Another agent keeps registering as '{self._registration.name}'. Two machines must not share a name:"
                f" start one of them with another --name."
            )
