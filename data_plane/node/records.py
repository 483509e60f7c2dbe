"""What the agent keeps on disk of its runners: one small record each, written before there is a process.

A record names the process by pid and identity, so that an agent started anew (or `cleanup`) finds the runners of
the one before. Knows nothing of HTTP, and signals nobody.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from data_plane.wire.fleet import DesiredReplica, ObservedReplica
from data_plane.wire.names import is_name

Asked = Literal["run", "park", "drain", "stop"]
RECORD_SUFFIX = ".record.json"


class Record(msgspec.Struct, frozen=True):
    """One replica of this node. `pid` 0: the agent was about to start it. `spawned_at` is Unix seconds."""

    replica_id: str
    endpoint: str
    generation: int
    pid: int = 0
    identity: str = ""
    """Which process had that pid: see processes.identity."""
    token: str = ""
    spawned_at: float = 0.0
    asked: Asked = "run"
    was_ready: bool = False
    fetch_s: float = 0.0
    """How long its artifact took from another node, before it was started."""
    claimed: bool = False
    """Its process had been in waiting."""
    ended: ObservedReplica | None = None
    """Its last report, once the process is gone."""
    wanted: DesiredReplica | None = None
    """What it was started for."""


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Where things stand under the home directory. Replica ids come from outside and are checked here."""

    home: Path

    @property
    def run(self) -> Path:
        return self.home / "run" / "node"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def snapshots(self) -> Path:
        return self.home / "kv"

    @property
    def keys(self) -> Path:
        return self.run / "keys.json"

    @property
    def verified(self) -> Path:
        return self.run / "verified.json"

    @property
    def standby_log(self) -> Path:
        return self.logs / "standby.log"

    @property
    def membership(self) -> Path:
        return self.run / "membership.json"

    @property
    def lease(self) -> Path:
        return self.run / "lease.json"

    @property
    def lock(self) -> Path:
        return self.run / "agent.lock"

    def record(self, replica_id: str) -> Path:
        return self.run / (checked(replica_id) + RECORD_SUFFIX)

    def spec(self, replica_id: str) -> Path:
        return self.run / f"{checked(replica_id)}.spec.json"

    def status(self, replica_id: str) -> Path:
        return self.run / f"{checked(replica_id)}.status.json"

    def log(self, replica_id: str) -> Path:
        return self.logs / f"replica-{checked(replica_id)}.log"

    def make(self) -> None:
        """Makes the folders. Raises OSError where the home cannot be written."""
        for folder in (self.run, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.run.chmod(0o700)  # the launches' tokens lie here


def checked(replica_id: str) -> str:
    """`replica_id` if it may be part of a path; ValueError otherwise."""
    if not is_name(replica_id):
        raise ValueError(f"{replica_id!r} is not a replica id.")
    return replica_id


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file in one step, mode 0600; a reader sees the old content or the new, never a part."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def save(paths: NodePaths, record: Record) -> None:
    """Writes a replica's record. Raises OSError (disk full, home gone)."""
    write_private(paths.record(record.replica_id), msgspec.json.encode(record))


def load_all(paths: NodePaths) -> tuple[list[Record], list[str]]:
    """All readable records, and the ids whose record cannot be read."""
    records: list[Record] = []
    broken: list[str] = []
    for path in sorted(paths.run.glob("*" + RECORD_SUFFIX)):
        replica_id = path.name.removesuffix(RECORD_SUFFIX)
        if not is_name(replica_id):
            continue  # a scratch file of an interrupted write: it never became a record
        try:
            records.append(msgspec.json.decode(path.read_bytes(), type=Record))
        except msgspec.DecodeError:
            broken.append(replica_id)
    return records, broken


def remove(paths: NodePaths, replica_id: str) -> None:
    """Removes the spec, the status and last the record, so that an interruption leaves a record to go on from."""
    for path in (paths.spec(replica_id), paths.status(replica_id), paths.record(replica_id)):
        path.unlink(missing_ok=True)
