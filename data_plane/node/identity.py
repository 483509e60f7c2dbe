"""Which home on which machine an agent runs on, and the credential that it keeps there. Knows nothing of HTTP."""

import functools
import hashlib
import os
import socket
from pathlib import Path

import msgspec

from data_plane.node.records import write_private

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Membership(msgspec.Struct, frozen=True):
    """What a machine that joined keeps (mode 0600): which node it is, of which control plane, and how it proves it."""

    control: str
    node_id: str
    name: str
    credential: str


@functools.cache
def boot_id() -> str:
    """Of the kernel since it was started; empty where it gives none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""  # not Linux


def machine_id(home: Path) -> str:
    """The same for an agent that is started again on this home, another for a copy of the home elsewhere: this boot of
    this kernel, and the folder as the kernel knows it. The lock on the home sees to it that there is one at a time."""
    where = home.stat()
    told = f"{boot_id()}|{socket.gethostname()}|{os.fspath(home)}|{where.st_dev}|{where.st_ino}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def read_membership(path: Path) -> Membership | None:
    """None where this home never joined. Raises ValueError with a sentence where the file is not readable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Membership)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Delete it, and join again with a new token.") from error


def write_membership(path: Path, membership: Membership) -> None:
    """Raises OSError."""
    write_private(path, msgspec.json.encode(membership))
