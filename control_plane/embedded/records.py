"""Which processes a supervisor started: written to a file, so that a later command can find and stop what is left.

A process is known by pid and creation time together, so that a recycled pid is never taken for ours.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from control_plane.embedded.home import write_private


@dataclass(frozen=True)
class ProcessRecord:
    """One process; `created_at` in Unix seconds as the system tells it."""

    name: str
    pid: int
    created_at: float

    def is_alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created_at) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def signal_group(self, number: int) -> None:
        """Signal the process and all of its group (each child of a supervisor leads its own)."""
        # Gone in between is what the caller wants.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def record_of(name: str, pid: int) -> ProcessRecord:
    """The record of a process that runs now. Raises psutil.NoSuchProcess."""
    return ProcessRecord(name, pid, psutil.Process(pid).create_time())


@dataclass(frozen=True)
class SupervisorRecord:
    """A supervisor with its URLs and its children, in the order they were started."""

    supervisor: ProcessRecord
    control: str
    gateway: str
    ready: bool
    children: tuple[ProcessRecord, ...]

    def write(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self), indent=2) + "\n")


def read_record(path: Path) -> SupervisorRecord | None:
    """What was last written to `path`; None where there is nothing, or nothing that can be read."""
    try:
        raw = json.loads(path.read_text())
        return SupervisorRecord(
            supervisor=ProcessRecord(**raw["supervisor"]),
            control=raw["control"],
            gateway=raw["gateway"],
            ready=raw["ready"],
            children=tuple(ProcessRecord(**child) for child in raw["children"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        # A file that was never written whole names no process.
        return None


def wait_gone(records: Sequence[ProcessRecord], timeout_s: float) -> list[ProcessRecord]:
    """Wait until none of `records` is alive, at most `timeout_s`; those that still are."""
    deadline = time.monotonic() + timeout_s
    while True:
        alive = [record for record in records if record.is_alive()]
        if not alive or time.monotonic() >= deadline:
            return alive
        time.sleep(0.05)


def stop_processes(records: Sequence[ProcessRecord], number: int = signal.SIGTERM, grace_s: float = 5.0) -> None:
    """Signal those of `records` that are alive, wait `grace_s` seconds, and kill what is left with its group."""
    alive = [record for record in records if record.is_alive()]
    for record in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
    for record in wait_gone(alive, grace_s):
        record.signal_group(signal.SIGKILL)
    for record in alive:
        # A worker's pool or a downloader may have outlived its leader.
        record.signal_group(signal.SIGKILL)
    wait_gone(alive, 5.0)
