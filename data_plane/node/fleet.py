"""All replicas of this node: adopts what runs, makes it what is desired. Knows nothing of the control plane's HTTP."""

import asyncio
import os
import secrets
import signal
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from data_plane.node import integrity, launch, logfile, processes, quarantine, weights_cache
from data_plane.node.diff import Action, diff
from data_plane.node.metrics import NodeMetrics
from data_plane.node.records import NodePaths, Record, load_all, remove, write_private
from data_plane.node.runner_process import BEFORE_READY, Drainer, RunnerProcess
from data_plane.node.snapshots import Snapshots
from data_plane.node.standby import Standbys, claimed_pid
from data_plane.wire.fleet import DesiredReplica, DesiredState, ObservedReplica, StartFailure
from data_plane.wire.keys import KeyRecord, KeyRing
from data_plane.wire.names import is_digest, is_name

log = structlog.get_logger()
KEPT_LOGS = 200


class Source(Protocol):
    """Where an artifact may be had that is not on this machine. Raises ArtifactMissing, OSError."""

    @property
    def is_known(self) -> bool:
        """Whether there is anybody to ask."""
        ...

    def fetch(self, digest: str, model: str, artifacts: Path) -> Coroutine[Any, Any, Path]: ...


class Fleet:
    """Owner of the runners. `changed` is set whenever a report would now say something new, `urgent` too where somebody
    waits for it: a replica came up or went down."""

    def __init__(
        self,
        paths: NodePaths,
        settings: launch.RunnerSettings,
        drainer: Drainer,
        metrics: NodeMetrics,
        source: Source | None = None,
    ) -> None:
        self.changed = asyncio.Event()
        self.urgent = asyncio.Event()
        self.is_fenced = False
        """Nothing may run here: see `fence`."""
        self.ring = KeyRing()
        self._paths = paths
        self._settings = settings
        self._drainer = drainer
        self._metrics = metrics
        self._source = source
        self._fetches: dict[str, asyncio.Task[Path]] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._verified = integrity.Verified(paths.verified)
        self._quarantine = quarantine.Quarantine()
        self._closing = threading.Event()
        self._checks: dict[str, asyncio.Task[StartFailure | None]] = {}
        self._replicas: dict[str, RunnerProcess] = {}
        self._desired: tuple[DesiredReplica, ...] | None = None
        self._keys: tuple[KeyRecord, ...] | None = None
        self._counted_ready: set[tuple[str, int]] = set()
        self._ended_events: list[asyncio.Event] = []
        self._snapshots = Snapshots(paths.snapshots, settings.snapshot_bytes, settings.snapshots_bytes)
        self.standbys = Standbys(paths, settings, self._is_starting)

    def adopt(self) -> None:
        """Takes over what an agent before this one left: living runners, and the ends of the others."""
        logfile.prune(self._paths.logs, "replica-*.log", KEPT_LOGS)
        self._set_keys((), only_if_missing=True)
        records, broken = load_all(self._paths)
        for replica_id in broken:
            # whose generation it is cannot be known, so it cannot be matched with anything desired
            log.error("record.broken", replica=replica_id)
            named = processes.find_by_argument(str(self._paths.spec(replica_id)))
            claimed = claimed_pid(self._paths.status(replica_id))
            for pid in [*named, *([] if claimed is None else [claimed])]:
                os.kill(pid, signal.SIGKILL)
            remove(self._paths, replica_id)
        for record in records:
            self._adopt_one(record)
        self._snapshots.trim()
        self.standbys.start()

    def apply(self, state: DesiredState) -> None:
        """Takes the control plane's will and begins to act on it."""
        self._set_keys(state.keys)
        self._count_stale(state)
        self._desired = state.replicas
        self._snapshots.forget(state.gone)
        self.reconcile()

    def drops(self, state: DesiredState) -> bool:
        """Whether something runs here that `state` does not name, and `apply` would stop."""
        named = {replica.id for replica in state.replicas}
        return any(
            replica.running().condition in ("up", "draining") and replica_id not in named
            for replica_id, replica in self._replicas.items()
        )

    def reconcile(self) -> None:
        """Does what the diff of desired and running says. Harmless at any time; nothing before the first `apply`."""
        if self._desired is None or self.is_fenced:
            return
        for action in diff(self._desired, [replica.running() for replica in self._replicas.values()]):
            self._do(action)

    def fence(self, reason: str, kill_s: float) -> None:
        """Ends every replica, within `kill_s` and whatever it is at, and starts none before `lift`: others may be given
        their places. Each is reported as failed for `reason`."""
        self.is_fenced = True
        log.warning("node.fenced", reason=reason, replicas=len(self._replicas))
        for replica_id, replica in list(self._replicas.items()):
            if replica.record.ended is None and not self._called_off(replica_id, StartFailure(reason, False)):
                replica.cut_off(StartFailure(reason, False), kill_s)

    def lift(self) -> None:
        """The control plane is heard again, and knows what has ended here."""
        self.is_fenced = False
        self.reconcile()

    def _count_stale(self, state: DesiredState) -> None:
        """Commands for a generation that was followed by another: they came late, and change nothing."""
        for wanted in state.replicas:
            held = self._replicas.get(wanted.id)
            if held is not None and wanted.generation < held.record.generation:
                self._metrics.stale.inc()

    def observed(self) -> tuple[ObservedReplica, ...]:
        """All replicas, for a report."""
        now = time.monotonic()
        return tuple(
            msgspec.structs.replace(replica.observed(), for_s=round(now - replica.began_at, 4))
            for replica in self._replicas.values()
        )

    def find(self, replica_id: str) -> ObservedReplica | None:
        """One replica as it is now."""
        replica = self._replicas.get(replica_id)
        return replica.observed() if replica else None

    def refresh(self) -> None:
        """Updates what has no event (memory)."""
        for replica in self._replicas.values():
            replica.refresh()

    async def stop_all(self) -> None:
        """Stops every runner and waits until all are gone."""
        for replica in self._replicas.values():
            replica.ask("stop")
        while any(replica.record.ended is None for replica in self._replicas.values()):
            event = asyncio.Event()
            self._ended_events.append(event)
            await event.wait()

    async def close(self) -> None:
        """Stops watching; the runners go on, to be adopted."""
        self._closing.set()
        await self.standbys.close()
        for task in (*self._waiting.values(), *self._fetches.values()):
            task.cancel()
        await asyncio.gather(*self._waiting.values(), *self._fetches.values(), return_exceptions=True)
        for replica in self._replicas.values():
            await replica.close()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)

    def _adopt_one(self, record: Record) -> None:
        if record.ended is None and record.pid == 0:
            found = processes.find_by_argument(str(self._paths.spec(record.replica_id)))
            if not found:
                remove(self._paths, record.replica_id)  # the agent ended before the start: it may be started anew
                return
            record = msgspec.structs.replace(record, pid=found[0], identity=processes.identity(found[0]) or "gone")
        replica = self._hold(record)
        if record.ended is not None:
            return
        if processes.is_alive(record.pid, record.identity):
            log.info("replica.adopted", replica=record.replica_id, pid=record.pid)
            self._metrics.adoptions.inc()
            replica.refresh()
            self._counted_ready.add((record.replica_id, record.generation))
            replica.watch(None)
        else:
            replica.judge_absent()

    def _hold(self, record: Record) -> RunnerProcess:
        replica = RunnerProcess(record, self._paths, self._settings, self._drainer, self._on_change)
        self._replicas[record.replica_id] = replica
        return replica

    def _do(self, action: Action) -> None:
        log.info("replica." + action.verb, replica=action.id)
        match action.verb:
            case "start" | "settle" if action.desired is not None:
                self._begin(action.desired, settle=action.verb == "settle")
            case "drain" | "stop" | "park":
                if not self._called_off(action.id, None):
                    self._replicas[action.id].ask(action.verb)
            case "unpark":
                self._replicas[action.id].ask("run")
            case _:
                del self._replicas[action.id]
                if is_name(action.id):
                    remove(self._paths, action.id)
                self.changed.set()

    def _begin(self, desired: DesiredReplica, *, settle: bool) -> None:
        nothing = Record(desired.id, desired.endpoint, desired.generation, spawned_at=time.time())
        if not is_name(desired.id):
            reason = f"The replica id {desired.id[:80]!r} cannot name a file; this is a fault of the control plane."
            self._hold(nothing).end(StartFailure(message=reason, fatal=True))
            return
        if settle:
            self._hold(nothing).end(None)
            return
        try:
            folder = weights_cache.resolve(self._paths.artifacts, desired.spec.artifact, desired.spec.model)
        except weights_cache.ArtifactMissing as error:
            replica = self._hold(nothing)
            if self._source is None or not self._source.is_known or not is_digest(desired.spec.artifact):
                replica.end(StartFailure(message=str(error), fatal=True))
                return
            waiting = asyncio.create_task(self._begin_when_fetched(replica, desired), name=f"fetch for {desired.id}")
            self._waiting[desired.id] = waiting
            self.changed.set()
            return
        self._start(nothing, desired, folder)

    def _start(self, record: Record, desired: DesiredReplica, folder: Path, *, fetch_s: float = 0.0) -> None:
        try:
            token = secrets.token_urlsafe(32)
            host, snapshot = self._settings.host, self._snapshots.spec(desired)
            record = launch.prepare(self._paths, desired, token, folder, host, fetch_s=fetch_s, snapshot=snapshot)
            self.standbys.expect(folder)
            claimed = self.standbys.claim(record)
            child, record = claimed or launch.spawn(self._paths, record, self._settings)
        except OSError as error:
            reason = f"The runner's process could not be started: {error.strerror or error}. Free disk or memory there."
            self._hold(record).end(StartFailure(message=reason, fatal=False))
            return
        self._metrics.starts.inc()
        replica = self._hold(record)
        replica.watch(child, self._check(folder, desired), lambda: self._mend(replica, desired))
        self.changed.set()

    def _mend(self, replica: RunnerProcess, desired: DesiredReplica) -> bool:
        """Its weights were found corrupt, and are put aside: once they are had from another node, and it starts from
        those. False where that cannot be."""
        is_held = self._replicas.get(desired.id) is replica
        somebody = self._source is not None and self._source.is_known
        may = somebody and self._quarantine.may_be_had_anew(desired.spec.artifact)
        if not is_held or not may or self.is_fenced or self._closing.is_set():
            return False
        log.info("replica.mended", replica=desired.id, artifact=desired.spec.artifact)
        self._begin(desired, settle=False)
        return True

    async def _begin_when_fetched(self, replica: RunnerProcess, desired: DesiredReplica) -> None:
        digest, began = desired.spec.artifact, time.monotonic()
        try:
            folder = await asyncio.shield(self._fetch(digest, desired.spec.model))
        except weights_cache.ArtifactMissing as error:
            # whoever has it may only be away; where it was here and is corrupt, one refusal is enough
            corrupt = self._quarantine.told(digest)
            message = str(error) if corrupt is None else f"{corrupt} {error}"
            replica.end(StartFailure(message=message, fatal=corrupt is not None))
        except OSError as error:
            reason = (
                f"The weights of '{desired.spec.model}' could not be written: {error.strerror or error}. Free disk."
            )
            replica.end(StartFailure(message=reason, fatal=False))
        else:
            self._note_sound(digest, folder)
            await asyncio.to_thread(quarantine.discard, folder)
            self._start(replica.record, desired, folder, fetch_s=round(time.monotonic() - began, 4))
        finally:
            self._waiting.pop(desired.id, None)

    def _fetch(self, digest: str, model: str) -> "asyncio.Task[Path]":
        """One fetch of an artifact at a time, for all who wait for it."""
        assert self._source is not None
        if digest not in self._fetches:
            fetching = self._source.fetch(digest, model, self._paths.artifacts)
            task = asyncio.get_running_loop().create_task(fetching, name=f"fetch {digest[:19]}")
            self._fetches[digest] = task
            task.add_done_callback(lambda _: self._fetches.pop(digest, None))
        return self._fetches[digest]

    def _called_off(self, replica_id: str, failure: StartFailure | None) -> bool:
        """Ends a replica that waits for its weights; False where it does not."""
        waiting = self._waiting.pop(replica_id, None)
        if waiting is None:
            return False
        waiting.cancel()
        self._replicas[replica_id].end(failure)
        return True

    def _is_starting(self) -> bool:
        return any(
            replica.record.ended is None and replica.observed().phase in BEFORE_READY
            for replica in self._replicas.values()
        )

    def _check(self, folder: Path, desired: DesiredReplica) -> "asyncio.Future[StartFailure | None] | None":
        """Reads the artifact beside the start, so that the start does not wait for it; once for all who start now."""
        digest = desired.spec.artifact
        if self._verified.has(folder, digest):
            return None
        if digest not in self._checks:
            task = asyncio.create_task(self._verify(folder, digest, desired.spec.model), name=f"check {digest[:19]}")
            self._checks[digest] = task
            task.add_done_callback(lambda _: self._checks.pop(digest, None))
        # shielded: a replica that is told to stop takes the check away from nobody
        return asyncio.shield(self._checks[digest])

    async def _verify(self, folder: Path, digest: str, model: str) -> StartFailure | None:
        began = time.monotonic()
        try:
            seen = integrity.stamp(folder)
        except OSError:
            seen = None  # one is missing: the reading says which
        fault = await asyncio.to_thread(integrity.fault, folder, digest, model, self._closing.is_set)
        log.info(
            "artifact.checked", artifact=digest, fault=fault and str(fault), seconds=round(time.monotonic() - began, 3)
        )
        if fault is not None:
            return await self._condemn(folder, digest, fault)
        if seen is not None:
            self._note(digest, seen)
            await asyncio.to_thread(quarantine.discard, folder)
        return None

    async def _condemn(self, folder: Path, digest: str, fault: integrity.Fault) -> StartFailure:
        if not fault.is_corrupt:
            return StartFailure(message=str(fault), fatal=True)
        try:
            await asyncio.to_thread(quarantine.put_aside, folder)
        except OSError as error:
            log.error("artifact.not_put_aside", artifact=digest, error=str(error))
            return StartFailure(message=str(fault), fatal=True)
        told = f"{fault.message} They were put aside as artifacts/{quarantine.place(folder).name}."
        self._quarantine.note(digest, told)
        self._metrics.quarantined.inc()
        return StartFailure(message=f"{told} {fault.remedy}", fatal=True)

    def _note_sound(self, digest: str, folder: Path) -> None:
        """What was fetched was read back then, and need not be read again."""
        try:
            self._note(digest, integrity.stamp(folder))
        except OSError:
            return  # gone again already: the start will say so

    def _note(self, digest: str, seen: integrity.Stamp) -> None:
        try:
            self._verified.note(digest, seen)
        except OSError as error:
            # the disk is full: it will be read again at the next start
            log.warning("artifact.unnoted", artifact=digest, error=str(error))

    def _on_change(self, replica: RunnerProcess) -> None:
        now = replica.observed()
        log.info("replica.phase", replica=now.id, endpoint=replica.record.endpoint, phase=now.phase, pid=now.pid,
                 failure=now.failure.message if now.failure else None)  # fmt: skip
        if now.phase not in BEFORE_READY:
            self.urgent.set()
        mark = (now.id, now.generation)
        if now.phase == "ready" and mark not in self._counted_ready:
            self._counted_ready.add(mark)
            self._metrics.start_seconds.observe(max(0.0, time.time() - replica.record.spawned_at))
            if replica.uses_torch:
                self.standbys.warm = self.standbys.warm or "torch"
        if replica.record.ended is not None:
            self._snapshots.trim()
            self._counted_ready.discard(mark)
            if now.failure is not None:
                self._metrics.failures.labels(str(now.failure.fatal).lower()).inc()
            for event in self._ended_events:
                event.set()
            self._ended_events.clear()
            # a newer generation may have waited for this end
            asyncio.get_running_loop().call_soon(self.reconcile)
        self.changed.set()

    def _set_keys(self, keys: tuple[KeyRecord, ...], *, only_if_missing: bool = False) -> None:
        if keys == self._keys or (only_if_missing and self._paths.keys.exists()):
            return
        write_private(self._paths.keys, msgspec.json.encode(keys))
        self._keys = keys
        self.ring = KeyRing(keys)
