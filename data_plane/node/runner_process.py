"""One replica of this node: its process from the start (or its adoption) to its end, as reports see it.

A ready runner is watched through a pidfd and costs nothing; only while its phase is about to change is its status
file looked at. Knows nothing of the control plane, nor of other replicas.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import msgspec
import psutil
import structlog

from data_plane.node import devices, oom, processes, residency
from data_plane.node.diff import Condition, Running
from data_plane.node.launch import RunnerSettings
from data_plane.node.logfile import read_tail
from data_plane.node.outcome import LOG_LINES, judge
from data_plane.node.pulse import Pulse
from data_plane.node.records import Asked, NodePaths, Record, save
from data_plane.wire.fleet import ObservedReplica, ReplicaPhase, RunnerStatus, StartFailure
from data_plane.wire.names import is_name
from data_plane.wire.routes import ReplicaRoute

log = structlog.get_logger()
BEFORE_READY = ("placing", "starting", "loading", "warming")
TELL_AGAIN_S = 2.0
LINGER_S = 1.0
"""How long a runner that has reported its failure may take to exit."""


class Drainer(Protocol):
    """Asks a runner over HTTP to drain, to park, or to serve again. OSError or TimeoutError where it could not be."""

    async def drain(self, url: str, token: str) -> None: ...

    async def park(self, url: str, token: str) -> None: ...

    async def unpark(self, url: str, token: str) -> None: ...


class RunnerProcess:
    """A replica's process. `on_change` is called when what reports say of it has changed."""

    def __init__(
        self,
        record: Record,
        paths: NodePaths,
        settings: RunnerSettings,
        drainer: Drainer,
        on_change: Callable[["RunnerProcess"], None],
    ) -> None:
        self.record = record
        self.memory = residency.Resident()
        self._fixed_bytes = 0
        self.began_at = time.monotonic() - max(0.0, time.time() - record.spawned_at) - record.fetch_s
        """When this start began, on the monotonic clock."""
        self._paths = paths
        self._settings = settings
        self._grace_s = settings.grace_s
        self._drainer = drainer
        self._on_change = on_change
        self._phase: ReplicaPhase = "ready" if record.was_ready else "starting"
        self._status: RunnerStatus | None = None
        self._status_stamp: tuple[int, int] | None = None
        self._progress_at = time.monotonic()
        self._asked_at = self._progress_at
        now = oom.kills()
        self._oom_kills = (now, now)
        """At the look before the last and at the last: a process that is killed goes on for a while."""
        self._told_at = 0.0
        self._is_parking = False
        """It was told to park, and not yet to serve again: it refuses requests even where it still says ready."""
        self._term_at: float | None = None
        self._failed_at: float | None = None
        self._verdict: StartFailure | None = None
        self._watch: processes.ExitWatch | None = None
        self._task: asyncio.Task[None] | None = None
        self._check: asyncio.Future[StartFailure | None] | None = None
        self._found: StartFailure | None = None
        """What the check of its artifact found."""
        self._mend: Callable[[], bool] | None = None
        self._pulse = Pulse(settings.hang_s)

    def watch(
        self,
        child: processes.Child | None,
        check: Awaitable[StartFailure | None] | None = None,
        mend: Callable[[], bool] | None = None,
    ) -> None:
        """Begins to watch the process of the record; `child` where this agent has started it. It does not count as
        ready before `check` of its artifact has found nothing, and ends with what it found; unless `mend`, called once
        its process is gone, says that it has begun the replica anew."""
        self._check = None if check is None else asyncio.ensure_future(check)
        self._mend = mend
        self._watch = processes.ExitWatch(self.record.pid, self.record.identity, child)
        self._task = asyncio.create_task(self._live(self._watch), name=f"replica {self.record.replica_id}")
        self._task.add_done_callback(_report_crash)

    def end(self, failure: StartFailure | None) -> None:
        """Notes that there is no process (any more): stopped, or failed for a reason."""
        observed = self.observed()
        ended = msgspec.structs.replace(
            observed, phase="failed" if failure else "stopped", url=None, token=None, pid=None, memory_bytes=0,
            failure=failure,
        )  # fmt: skip
        self._keep(msgspec.structs.replace(self.record, ended=ended))
        self._on_change(self)

    def ask(self, asked: Asked) -> None:
        """Park or run, drain or stop. Asking for what is already under way, or for less, changes nothing."""
        order: dict[Asked, int] = {"run": 0, "park": 0, "drain": 1, "stop": 2}
        less = order[asked] < order[self.record.asked]
        if self.record.ended is not None or less or asked == self.record.asked:
            return
        if asked == "run":
            self.began_at = time.monotonic()
        self._told_at = 0.0
        self._asked_at = time.monotonic()
        self._keep(msgspec.structs.replace(self.record, asked=asked))
        if self._watch is not None:
            self._watch.nudge()
        self._on_change(self)

    def cut_off(self, reason: StartFailure, kill_s: float) -> None:
        """Stop, within `kill_s`, and report it as failed for `reason`."""
        self._verdict = self._verdict or reason
        self._grace_s = kill_s
        self.ask("stop")

    def observed(self) -> ObservedReplica:
        """What the next report says of this replica."""
        if self.record.ended is not None:
            return self.record.ended
        status = self._status
        return ObservedReplica(
            id=self.record.replica_id,
            generation=self.record.generation,
            phase="draining" if self.record.asked in ("drain", "stop") else self._phase,
            url=status.url if status else None,
            token=self.record.token,
            pid=self.record.pid or None,
            slots=status.slots if status else 0,
            memory_bytes=self.memory.now_bytes,
            peak_bytes=self.memory.peak_bytes,
            fixed_bytes=self._fixed_bytes,
            max_model_len=status.max_model_len if status else 0,
            spans=self._spans(),
            wanted=self.record.wanted,
        )

    @property
    def uses_torch(self) -> bool:
        """Whether its runner said that torch runs the model."""
        return self._status is not None and self._status.torch

    def running(self) -> Running:
        """The same as the diff sees it."""
        asked: dict[Asked, Condition] = {"run": "up", "park": "parked", "drain": "draining", "stop": "stopping"}
        condition = asked[self.record.asked] if self.record.ended is None else "ended"
        return Running(self.record.replica_id, self.record.generation, condition)

    def refresh(self) -> None:
        """Reads what changes without an event: memory, and a status that the runner changed by itself."""
        if self.record.ended is None:
            with contextlib.suppress(psutil.Error):  # it ended this instant: the watch will say so
                used = residency.read(self.record.pid)
                if used.now_bytes:  # none: it is a zombie
                    self.memory = used
                    self._fixed_bytes = max(self._fixed_bytes, used.fixed_bytes)
                    self._oom_kills = (self._oom_kills[1], oom.kills())
            self._look()
            self._feel_pulse()
            if self._watch is not None:
                self._watch.nudge()

    def _feel_pulse(self) -> None:
        status = self._status
        if self._phase != "ready" or self.record.asked != "run" or status is None or status.url is None:
            return
        self._pulse.feel(ReplicaRoute(self.record.replica_id, status.url, self.record.token, status.slots))
        if self._pulse.is_hung and self._verdict is None:
            self._verdict = StartFailure(
                message=f"The runner hung: it gave no answer for {self._settings.hang_s:g} s and was killed. Its log"
                f" says more: `ebb logs {self.record.endpoint}`.",
                fatal=False,
            )
            processes.kill_group(self.record.pid, self.record.identity)

    async def close(self) -> None:
        """Stops watching; the process goes on."""
        self._pulse.close()
        tasks = [task for task in (self._task, self._check) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, watch: processes.ExitWatch) -> None:
        try:
            while not await watch.wait(self._nap_s()):
                self._look()
                self._heed_check()
                await self._enforce()
        finally:
            watch.close()
            self._pulse.close()
        self._look()
        judged = self._judge(watch.code)
        if judged is not None and self._verdict is None and self._check is not None:
            # it failed of its own accord: corrupt weights would explain that better than whatever they made it say
            self._found = self._verdict = await self._check
        has_begun_anew = (
            self._found is not None and self.record.asked == "run" and self._mend is not None and self._mend()
        )
        if not has_begun_anew:
            self.end(self._verdict or judged)

    def _heed_check(self) -> None:
        if self._check is None or not self._check.done():
            return
        self._found = self._check.result()
        self._verdict = self._verdict or self._found
        self._check = None
        if self._found is not None:
            processes.kill_group(self.record.pid, self.record.identity)
            return
        self._status_stamp = None  # it may have been ready for a while
        self._look()

    def _nap_s(self) -> float | None:
        at_rest = (self._phase, self.record.asked) in (("ready", "run"), ("parked", "park"))
        at_rest = at_rest and not (self._is_parking and self.record.asked == "run")
        moving = not at_rest or self._failed_at is not None
        return self._settings.poll_s if moving else None

    def _look(self) -> None:
        path = self._paths.status(self.record.replica_id)
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._status_stamp:
                return
            status = msgspec.json.decode(path.read_bytes(), type=RunnerStatus)
        except FileNotFoundError:
            return  # the runner has not come so far yet
        except (msgspec.DecodeError, OSError) as error:
            log.warning("runner.status_unreadable", replica=self.record.replica_id, error=str(error))
            return
        self._status_stamp = stamp
        if status.replica_id == self.record.replica_id:
            self._take(status)

    def _take(self, status: RunnerStatus) -> None:
        before = self.observed()
        self._status = status
        if status.phase in ("failed", "stopped"):
            # not reported before the process is gone: until then it holds memory that another start would need
            self._failed_at = self._failed_at or time.monotonic()
        else:
            phase = "warming" if status.phase == "ready" and self._check is not None else status.phase
            if phase != self._phase:
                self._progress_at = time.monotonic()
            self._phase = phase
        if self._phase == "ready" and not self.record.was_ready:
            self._keep(msgspec.structs.replace(self.record, was_ready=True))
        if self.observed() != before:
            self._on_change(self)

    async def _enforce(self) -> None:
        now = time.monotonic()
        if self.record.asked == "stop" or self._drain_is_over(now):
            self._terminate(now)
        elif self.record.asked == "drain" and self._phase != "draining":
            await self._drain(now)
        elif self.record.asked == "park" and self._phase == "ready":
            await self._tell_once("park", now)
        elif self.record.asked == "run" and (self._phase == "parked" or self._is_parking):
            await self._tell_once("unpark", now)
        elif self._failed_at is not None and now - self._failed_at > LINGER_S:
            processes.kill_group(self.record.pid, self.record.identity)
        elif self._check is None and self._phase in BEFORE_READY and self._is_stalled(now):
            self._verdict = StartFailure(
                message=f"The runner made no progress: it stayed in '{self._phase}' for"
                f" {self._settings.stall_s:g} s and was killed. Its log says more: `ebb logs {self.record.endpoint}`.",
                fatal=False,
            )
            processes.kill_group(self.record.pid, self.record.identity)

    def _is_stalled(self, now: float) -> bool:
        return now - self._progress_at > self._settings.stall_s

    def _drain_is_over(self, now: float) -> bool:
        return self.record.asked == "drain" and now - self._asked_at > self._settings.drain_s

    def _terminate(self, now: float) -> None:
        if self._term_at is None:
            self._term_at = now
            processes.terminate(self.record.pid, self.record.identity)
        elif now - self._term_at > self._grace_s:
            processes.kill_group(self.record.pid, self.record.identity)

    async def _tell_once(self, what: Literal["park", "unpark"], now: float) -> None:
        """Tells it, and again only after a while: parking waits for the requests that it has."""
        status = self._status
        if status is None or status.url is None or now - self._told_at < TELL_AGAIN_S:
            return
        self._told_at = now
        self._is_parking = True
        call = self._drainer.park if what == "park" else self._drainer.unpark
        try:
            await call(status.url, self.record.token)
            self._is_parking = what == "park"
        except (OSError, TimeoutError) as error:
            log.warning("runner.untold", what=what, replica=self.record.replica_id, error=str(error))
        self._look()

    async def _drain(self, now: float) -> None:
        if self._phase in BEFORE_READY or self._status is None or self._status.url is None:
            self.ask("stop")  # nobody was ever sent to it
            self._terminate(now)
            return
        self._phase = "draining"
        try:
            await self._drainer.drain(self._status.url, self.record.token)
        except (OSError, TimeoutError) as error:
            log.warning("runner.drain_unanswered", replica=self.record.replica_id, error=str(error))
            processes.terminate(self.record.pid, self.record.identity)  # means drain to a runner, too

    def _judge(self, code: int | None) -> StartFailure | None:
        return judge(
            asked=self.record.asked,
            was_ready=self.record.was_ready,
            status=self._status,
            code=code,
            shortage=self._shortage(),
            log_tail=read_tail(self._paths.log(self.record.replica_id), LOG_LINES)[0].decode(errors="replace"),
        )

    def _shortage(self) -> str:
        if not oom.rose(self._oom_kills[0], oom.kills()):
            return ""
        had, free = self.memory.now_bytes >> 20, devices.memory().free_bytes >> 20
        return (
            f"It had {had} MiB when it was last looked at, and {free} MiB are free on this machine without it."
            " Deploy it with a smaller --context or --concurrency, let others sleep, or use a larger machine."
        )

    def judge_absent(self) -> None:
        """Ends the replica of a record whose process ended while no agent was there."""
        self._look()
        self.end(self._judge(None))

    def _spans(self) -> dict[str, float]:
        status = self._status
        if status is None:
            return {}
        if status.phase == "parked" or "unpark" in status.spans:
            return dict(status.spans)
        begun = "claim" if self.record.claimed else "spawn"
        fetched = {"fetch": self.record.fetch_s} if self.record.fetch_s else {}
        return {**fetched, begun: max(0.0, status.started_at - self.record.spawned_at), **status.spans}

    def _keep(self, record: Record) -> None:
        self.record = record
        if not is_name(record.replica_id):
            return  # it was refused for its id, and has no file
        try:
            save(self._paths, record)
        except OSError as error:
            # the disk is full: the replica must go on, and only an agent started anew would miss this
            log.warning("record.unwritten", replica=record.replica_id, error=str(error))


def _report_crash(task: asyncio.Task[None]) -> None:
    """A watching task that fails is our own bug: it must not go unseen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("replica.watch_failed", task=task.get_name(), exc_info=error)
