"""One agent per home: a lock that the kernel gives back when its holder dies. Knows nothing of agents."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class Locked(Exception):
    """Somebody else holds the lock; the message says who."""


@contextmanager
def hold(path: Path, home: Path) -> Generator[None]:
    """Holds the lock while the block runs. Raises Locked where it is taken. Runners do not inherit it."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(32).strip() or "unknown"
            raise Locked(
                f"A node agent (pid {holder}) already runs on {home}. Stop it first, or give another --home."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
