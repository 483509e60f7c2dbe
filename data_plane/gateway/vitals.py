"""Whether replicas live: those with requests that fall silent are asked, those found dead are left alone until back.

A runner may be silent for long and well (a long prompt, an answer that is no stream), so silence alone ends nothing:
it is asked on another connection, and only one that gives no sign there either is given up, with all that it has.
Idle, this does nothing. Knows nothing of what the requests are.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from data_plane.router.health import Health
from data_plane.router.probe import ANSWER_S, Vital
from data_plane.router.table import RouteTable
from data_plane.wire.routes import ReplicaRoute

_log = structlog.get_logger()
NEVER = float("inf")


@dataclass(frozen=True)
class VitalLimits:
    """`silent_s` without a byte from a replica that has requests: it is asked. `reach_s` without a connection: its
    machine does not answer. `most_missed` questions in a row that its open port leaves unanswered for `answer_s`: it
    hangs."""

    silent_s: float = 1.0
    look_s: float = 0.25
    reach_s: float = 1.25
    """A kernel answers for a busy process; one that was not heard is asked again after 1 s (RFC 6298): two tries."""
    most_missed: int = 3
    answer_s: float = ANSWER_S


class ReplicaSilent(Exception):
    """The replica gives no sign of life any more."""


class Watch:
    """One request on one replica: count `signs` up with whatever comes."""

    def __init__(self, patient: "_Patient") -> None:
        self.signs = 0
        self._patient = patient
        self._why: str | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0

    def begin(self) -> None:
        """From now on the running task counts as being on the replica."""
        # as asyncio.timeout does it, which takes 8 us of a request that needs none
        task = asyncio.current_task()
        assert task is not None, "a watch is of a task"
        self._task, self._cancelling = task, task.cancelling()
        self._patient.watches.add(self)

    def end(self, error: BaseException | None) -> None:
        """It is not any more; `error` is what ended it. Raises ReplicaSilent where `lose` did."""
        patient, task = self._patient, self._task
        assert task is not None, "it has begun"
        patient.watches.discard(self)
        patient.ended += self.signs + 1
        if self._why is None:
            return
        is_ours = task.uncancel() <= self._cancelling
        if is_ours and isinstance(error, asyncio.CancelledError):
            raise ReplicaSilent(self._why) from error

    def lose(self, why: str) -> None:
        """End what runs within."""
        if self._why is None and self._task is not None:
            self._why = why
            self._task.cancel()


@dataclass(eq=False)
class _Patient:
    endpoint_id: str
    replica: ReplicaRoute
    heard_at: float
    watches: set[Watch] = field(default_factory=set[Watch])
    ended: int = 0
    seen: int = 0
    missed: int = 0
    asking: "asyncio.Task[None] | None" = None

    @property
    def signs(self) -> int:
        return self.ended + sum(watch.signs for watch in self.watches)


class Vitals:
    """`ask` probes a replica; `on_back` is told the endpoint whose replica may be used again."""

    def __init__(
        self,
        table: RouteTable,
        ask: Callable[[ReplicaRoute], Awaitable[Vital]],
        on_back: Callable[[str], None],
        limits: VitalLimits,
    ) -> None:
        self._table = table
        self._ask = ask
        self._on_back = on_back
        self._limits = limits
        self._health = Health()
        self._patients: dict[str, _Patient] = {}
        self._looking: asyncio.Task[None] | None = None
        self._nursing: dict[str, asyncio.Task[None]] = {}
        self._crowds: dict[str, list[int]] = {}

    def watch(self, endpoint_id: str, replica: ReplicaRoute) -> Watch:
        """Around everything that one request does with the replica."""
        patient = self._patients.get(replica.id)
        if patient is None or patient.replica != replica:
            patient = self._patients[replica.id] = _Patient(endpoint_id, replica, _now())
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="vitals")
        return Watch(patient)

    def crowd(self, replica: ReplicaRoute) -> list[int]:
        """The signs that each request on an ejected replica had had by then, but for the one that found it out."""
        return self._crowds.get(_name(replica), [])

    def answered(self, replica: ReplicaRoute) -> None:
        """It answered a request well."""
        if self._health:
            self._health.answered(_name(replica))

    def eject(self, endpoint_id: str, replica: ReplicaRoute) -> None:
        """Leave it alone until it says that it is ready."""
        if not self._health.eject(_name(replica), _now()):
            return
        patient = self._patients.get(replica.id)
        self._crowds[_name(replica)] = [watch.signs for watch in patient.watches] if patient else []
        self._table.avoid(replica.id, NEVER)
        task = asyncio.get_running_loop().create_task(self._nurse(endpoint_id, replica), name=f"nurse {replica.id}")
        self._nursing[_name(replica)] = task

    async def examine(self, replica: ReplicaRoute) -> Vital:
        """What it says of itself now; asked for one that broke a connection."""
        return await self._ask(replica)

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = [*self._nursing.values(), *([self._looking] if self._looking else [])]
        tasks += [patient.asking for patient in self._patients.values() if patient.asking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        limits = self._limits
        while True:
            await asyncio.sleep(limits.look_s)
            now = _now()
            for replica_id, patient in list(self._patients.items()):
                if not patient.watches:
                    del self._patients[replica_id]
                elif (signs := patient.signs) != patient.seen:
                    patient.seen, patient.heard_at, patient.missed = signs, now, 0
                elif now - patient.heard_at >= limits.silent_s and (patient.asking is None or patient.asking.done()):
                    patient.asking = asyncio.get_running_loop().create_task(self._ask_patient(patient))
            if not self._patients:
                return

    async def _ask_patient(self, patient: _Patient) -> None:
        vital = await self._ask(patient.replica)
        if vital in ("ready", "busy"):
            patient.heard_at, patient.missed = _now(), 0
            return
        # nothing new is sent to it from here on; what it has may still come
        self.eject(patient.endpoint_id, patient.replica)
        patient.missed += 1
        if vital == "silent" and patient.missed < self._limits.most_missed:
            return
        _log.warning("replica_given_up", replica=patient.replica.id, vital=vital, requests=len(patient.watches))
        for watch in list(patient.watches):
            watch.lose(f"it gives no sign of life ({vital})")

    async def _nurse(self, endpoint_id: str, replica: ReplicaRoute) -> None:
        """Ask an ejected replica until it is ready again or has left the routes."""
        health, name = self._health, _name(replica)
        try:
            while True:
                await asyncio.sleep(max(0.0, health.ask_at(name) - _now()))
                route = self._table.get(endpoint_id)
                if route is None or replica not in route.replicas:
                    health.forget(name)
                    return
                if await self._ask(replica) == "ready":
                    break
                health.still_away(name, _now())
        finally:
            self._nursing.pop(name, None)
            self._crowds.pop(name, None)
        health.admit(name)
        self._table.avoid(replica.id, 0.0)
        _log.info("replica_back", replica=replica.id)
        self._on_back(endpoint_id)


def _name(replica: ReplicaRoute) -> str:
    """One launch: a replica that is started anew has another address."""
    return f"{replica.id}@{replica.url}"


def _now() -> float:
    return asyncio.get_running_loop().time()
