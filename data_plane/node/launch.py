"""Starts the program of a runner: its spec file, its environment, its log, its own session. Watches nothing."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from data_plane.node.processes import identity
from data_plane.node.records import NodePaths, Record, save, write_private
from data_plane.wire.fleet import DesiredReplica, RunnerSpec, SnapshotSpec

PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "PYTHONPATH",
    # where CUDA's libraries are, and which devices this agent may use
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)


FIRST_TO_GO = 500
"""Of -1000 (never) to 1000 (before all others); a process that says nothing has 0."""


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """How runners are started and how long each part of their life may take."""

    command: tuple[str, ...] = (sys.executable, "-m", "data_plane.runner")
    stall_s: float = 120.0
    """Without a new phase for so long, a start is given up."""
    hang_s: float = 30.0
    """A ready runner that answers nothing for so long is killed."""
    drain_s: float = 300.0
    grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    standby: int = 0
    """How many runners wait, with everything imported, for a replica to become."""
    forks: bool = False
    """Whether `command` takes `--template` (`data_plane/runner/standby.py`): then those that wait are forks of one."""
    warm: str = ""
    """What they make ready beyond that: `torch`, or a device like `cuda:0`."""
    host: str = "127.0.0.1"
    """What runners listen on, and where gateways find them."""
    poll_s: float = 0.005
    """How often the status of a replica that is about to change is looked at."""
    snapshot_bytes: int = 64 << 20
    """Of its KV cache a runner keeps so much in a file for the next one of its endpoint; 0: nothing."""
    snapshots_bytes: int = 1 << 30
    """All these files together."""


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The few variables a runner gets of ours: no key, no proxy, nothing that holds a secret."""
    return {name: ours[name] for name in PASSED_ON if name in ours}


def prepare(
    paths: NodePaths,
    desired: DesiredReplica,
    token: str,
    artifact_dir: Path,
    host: str = "127.0.0.1",
    *,
    fetch_s: float = 0.0,
    snapshot: SnapshotSpec | None = None,
) -> Record:
    """Writes record and spec, in that order: from here on an interrupted start can be found. Raises OSError."""
    record = Record(
        replica_id=desired.id,
        endpoint=desired.endpoint,
        generation=desired.generation,
        token=token,
        spawned_at=time.time(),
        wanted=desired,
        fetch_s=fetch_s,
    )
    save(paths, record)
    paths.status(desired.id).unlink(missing_ok=True)  # of an earlier generation
    spec = RunnerSpec(
        replica_id=desired.id,
        endpoint=desired.endpoint,
        artifact_dir=str(artifact_dir),
        token=token,
        status_path=str(paths.status(desired.id)),
        keys_path=str(paths.keys),
        host=host,
        spec=desired.spec,
        snapshot=snapshot,
    )
    write_private(paths.spec(desired.id), msgspec.json.encode(spec))
    return record


def spawn(paths: NodePaths, record: Record, settings: RunnerSettings) -> tuple[subprocess.Popen[bytes], Record]:
    """Starts the process and notes who it is. Raises OSError where it cannot be started."""
    command = [*settings.command, "--spec", str(paths.spec(record.replica_id))]
    child = start(command, paths.log(record.replica_id), paths.run, subprocess.DEVNULL)
    started = msgspec.structs.replace(record, pid=child.pid, identity=identity(child.pid) or "gone")
    save(paths, started)
    return child, started


def start(command: list[str], log_path: Path, folder: Path, stdin: int) -> subprocess.Popen[bytes]:
    """A runner's process in a session of its own, with nothing of ours but what it needs. Raises OSError."""
    with os.fdopen(_append_private(log_path), "ab") as log:
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment(os.environ),
            start_new_session=True,
            umask=0o077,
        )
    _no_core_dump(child.pid)
    _first_to_go(child.pid)
    return child


def _append_private(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _first_to_go(pid: int) -> None:
    """Where memory runs out the kernel shall take a runner, which is replaced, and not what holds all of them up."""
    with contextlib.suppress(OSError):  # not Linux, or it ended already
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(FIRST_TO_GO))


def _no_core_dump(pid: int) -> None:
    # a core would hold prompts and keys; done from here because code between fork and exec is not safe with threads
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    except (ProcessLookupError, PermissionError, AttributeError):
        return  # it ended already, or the system has no such call: the start itself is not at fault
