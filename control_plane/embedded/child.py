"""One process of the platform: started, kept running, and stopped. Knows nothing of what the process does."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from control_plane.embedded.postgres import SystemUser
from control_plane.embedded.records import ProcessRecord, record_of

FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 5.0
_STEADY_S = 10.0  # a process that lived this long starts again without waiting longer than the first time


@dataclass(frozen=True)
class ChildSpec:
    """How to start a process and how to stop it."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    cwd: Path
    grace_s: float
    """How long it may take to stop before it is killed."""
    stop_signal: int = signal.SIGTERM
    user: SystemUser | None = None
    before_start: Callable[[], None] | None = None
    """Blocking work that each start needs first; run in a thread."""


class Child:
    """Keeps one process running until it is told to stop. `on_change` is called after each start and each end."""

    def __init__(self, spec: ChildSpec, on_change: Callable[["Child"], None]) -> None:
        self.spec = spec
        self.record: ProcessRecord | None = None
        self.exits: list[int] = []
        """Exit codes of the process's lives so far; negative ones are signals."""
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start it, and start it again whenever it ends."""
        self._task = asyncio.create_task(self._keep_running(), name=f"child {self.spec.name}")

    @property
    def failed(self) -> BaseException | None:
        """Why the process can no longer be kept running; None while it can."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    async def stop(self) -> None:
        """Ask it to stop, kill it after its grace, and wait until it and its group are gone."""
        self._stopping.set()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.spec.stop_signal)
            try:
                await asyncio.wait_for(process.wait(), self.spec.grace_s)
            except TimeoutError:
                _kill_group(process.pid)
        if self._task is not None:
            # What ended the task was reported when it happened.
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_running(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            await self._run_once()
            if self._stopping.is_set():
                return
            backoff_s = FIRST_BACKOFF_S if time.monotonic() - started > _STEADY_S else backoff_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    async def _run_once(self) -> None:
        spec = self.spec
        if spec.before_start is not None:
            await asyncio.to_thread(spec.before_start)
        with spec.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(spec.env),
                cwd=spec.cwd,
                # A group of its own: Ctrl-C in the terminal must not stop it out of order.
                start_new_session=True,
                user=spec.user.uid if spec.user else None,
                group=spec.user.gid if spec.user else None,
                extra_groups=[] if spec.user else None,
            )
        self._process = process
        with contextlib.suppress(psutil.NoSuchProcess):  # gone already: there is nothing to clean up later
            self.record = record_of(spec.name, process.pid)
        self._on_change(self)
        if self._stopping.is_set():
            _kill_group(process.pid)
        self.exits.append(await process.wait())
        # The pool of a killed worker, or a download it had started, must not go on beside the next one.
        _kill_group(process.pid)
        self.record = None
        self._on_change(self)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
