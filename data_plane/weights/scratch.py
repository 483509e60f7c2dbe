"""Folders that vanish: with their owner's `with` block, or, if the owner was killed, at the next one's start.

Knows nothing of weights. A folder's owner holds a lock on a file in it, which the kernel drops when it dies.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from data_plane.weights.errors import SourceError

PREFIX = ".partial-"
_OWNER = ".owner"


@contextmanager
def _locked(root: Path) -> Generator[None, None, None]:
    """One process at a time makes or sweeps folders under `root`."""
    with (root / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*"):
        try:
            owner = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            # killed before it took its lock: nobody can own it, as making and locking happen under the root's lock
            shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # alive: its own block removes it
        finally:
            os.close(owner)


@contextmanager
def scratch_folder(root: Path) -> Generator[Path, None, None]:
    """A new folder under `root`, gone at the end; leftovers of killed owners are removed first."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            _sweep(root)
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
            owner = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(owner, fcntl.LOCK_EX)
    except OSError as error:
        raise SourceError(f"the folder {root} cannot be written to: {error}; make it writable", fatal=False) from error
    try:
        yield folder
    finally:
        # the block may have renamed the folder away, which is how an artifact is published
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)
