"""The files in which runners keep blocks of their KV caches: one for each endpoint and artifact, all of them bounded.

They hold what clients wrote, as keys and values: private to this user, gone with their endpoint, and after a week
without use. Knows nothing of their content.
"""

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path

import structlog

from data_plane.wire.fleet import DesiredReplica, SnapshotSpec
from data_plane.wire.names import is_digest, is_name

log = structlog.get_logger()

SUFFIX = ".kv"
MOST_AGE_S = 7 * 86_400.0
SCRATCH_AGE_S = 600.0
"""A file that is still not finished then never will be."""


class Snapshots:
    """Owner of a folder. `most_bytes` of one file, 0: there are none; `total_bytes` of all together."""

    def __init__(self, folder: Path, most_bytes: int, total_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = min(most_bytes, total_bytes)
        self._total_bytes = total_bytes if most_bytes else 0

    def spec(self, desired: DesiredReplica) -> SnapshotSpec | None:
        """Where this replica's runner keeps its blocks; None where it shall not. Raises OSError."""
        if not self._most_bytes or not is_name(desired.endpoint_id) or not is_digest(desired.spec.artifact):
            return None
        self._folder.mkdir(mode=0o700, exist_ok=True)
        digest = desired.spec.artifact.removeprefix("sha256:")[:16]
        return SnapshotSpec(str(self._folder / f"{desired.endpoint_id}.{digest}{SUFFIX}"), self._most_bytes)

    def forget(self, endpoints: Collection[str]) -> None:
        """Deletes those of these endpoints, which are no more."""
        gone = set(endpoints)
        for path in self._files() if gone else ():
            if path.name.lstrip(".").split(".")[0] in gone:
                log.info("snapshot.forgotten", path=str(path))
                with contextlib.suppress(OSError):  # it is looked for again with the next state
                    path.unlink()

    def trim(self) -> None:
        """Deletes what was used longest ago until all have `total_bytes` at most, and what nobody has used for long."""
        now, total = time.time(), 0
        found: list[tuple[float, int, Path]] = []
        for path in self._files():
            with contextlib.suppress(OSError):  # a runner has just replaced it
                told = path.lstat()
                found.append((told.st_mtime, told.st_size, path))
        for used_at, size, path in sorted(found, reverse=True):
            is_whole = not path.name.startswith(".")
            total += size if is_whole else 0
            is_wanted = total <= self._total_bytes if is_whole else True
            if not is_wanted or now - used_at > (MOST_AGE_S if is_whole else SCRATCH_AGE_S):
                log.info("snapshot.removed", path=str(path), bytes=size)
                with contextlib.suppress(OSError):
                    path.unlink()

    def _files(self) -> list[Path]:
        try:
            return [Path(entry.path) for entry in os.scandir(self._folder) if SUFFIX in entry.name]
        except OSError:
            return []  # nothing was ever written
