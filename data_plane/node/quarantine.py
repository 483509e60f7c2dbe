"""Artifacts whose files are not what their digest says: put aside, so that nothing starts from them again, and gone
once sound ones are there in their place. Knows nothing of replicas, nor of where an artifact can be had anew."""

import shutil
from pathlib import Path

PREFIX = ".quarantined-"


def place(folder: Path) -> Path:
    """Where the artifact of `folder` is put aside; at most one of a digest is kept."""
    return folder.with_name(PREFIX + folder.name)


def put_aside(folder: Path) -> None:
    """Whoever has the files open goes on with them; nobody finds them any more. Raises OSError."""
    aside = place(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)


def discard(folder: Path) -> None:
    """There are sound files in `folder`: the corrupt ones have told all they could."""
    shutil.rmtree(place(folder), ignore_errors=True)


class Quarantine:
    """What one agent has found corrupt since it began. One owner, one event loop."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._times: dict[str, int] = {}

    def note(self, digest: str, told: str) -> None:
        """An artifact was put aside; `told` says what was wrong with it."""
        self._told[digest] = told
        self._times[digest] = self._times.get(digest, 0) + 1

    def told(self, digest: str) -> str | None:
        """What was wrong with it, if anything was."""
        return self._told.get(digest)

    def may_be_had_anew(self, digest: str) -> bool:
        """Whether it was found corrupt for the first time. What was whole when it came and is corrupt again is this
        machine's doing: to get it a third time would only repeat that."""
        return self._times.get(digest) == 1
