"""Whether an artifact's files still are what its digest says. Read once, and again only where a file has changed since.
Knows nothing of what is in them."""

import errno
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from data_plane.node.records import write_private
from data_plane.weights.mapped import CONFIG, TENSORS, TOKENIZER, TOKENIZER_CONFIG, combine_digests

FILES = (CONFIG, TENSORS, TOKENIZER, TOKENIZER_CONFIG)
"""All that the digest covers; the manifest beside them only tells where they came from."""
CHUNK_BYTES = 4 << 20
SPOILED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
"""Of what may go wrong with reading, that which stays so: a file is gone, or the disk cannot read it."""
Stamp = tuple[tuple[int, int, int], ...]
"""Of each file: bytes, time of its last change in ns, inode."""


def stamp(folder: Path) -> Stamp:
    """What changes with the files. Raises OSError where one is missing."""
    stats = [(folder / name).stat() for name in FILES]
    return tuple((each.st_size, each.st_mtime_ns, each.st_ino) for each in stats)


class GivenUp(Exception):
    """The reading was called off before its end."""


def _goes_on() -> bool:
    return False


def digest(folder: Path, is_called_off: Callable[[], bool] = _goes_on) -> str:
    """`sha256:…` over all files, read anew (about 1 s a GB). Raises OSError and GivenUp."""
    found = {name: _file_digest(folder / name, is_called_off) for name in FILES}
    return combine_digests(found)


def _file_digest(path: Path, is_called_off: Callable[[], bool]) -> str:
    hasher, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if is_called_off():
                raise GivenUp
            hasher.update(buffer[:count])
    return hasher.hexdigest()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an artifact's files, as a sentence, and what to do about it, as another. `is_corrupt`: they
    can be read, or are not there, and will be no better the next time."""

    message: str
    remedy: str
    is_corrupt: bool = True

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def fault(folder: Path, expected: str, model: str, is_called_off: Callable[[], bool] = _goes_on) -> Fault | None:
    """What is wrong with an artifact whose files are not those of its digest; None where they are. Reads every byte.
    Raises GivenUp."""
    try:
        found = digest(folder, is_called_off)
    except OSError as error:
        told = (
            f"The weights of the model '{model}' cannot be read on this machine: {error.strerror or error} "
            f"({Path(str(error.filename)).name} in artifacts/{folder.name})."
        )
        return Fault(told, remedy(model), error.errno in SPOILED)
    if found == expected:
        return None
    told = (
        f"The weights of the model '{model}' are corrupt on this machine: {', '.join(FILES[:-1])} and {FILES[-1]} have "
        f"the digest {found}, and should have {expected}."
    )
    return Fault(told, remedy(model))


def remedy(model: str) -> str:
    """What to do where no other machine has them."""
    return f"Make them again with `ebb models quantize {model} --quant QUANT --force`."


class Verified:
    """Which artifacts were found sound, as their files were then. Kept on disk, so that an agent started anew does not
    read them all again. One owner, one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps = _load(path)

    def has(self, folder: Path, digest: str) -> bool:
        """Whether the files are as they were when they were found sound."""
        try:
            return self._stamps.get(digest) == stamp(folder)
        except OSError:
            return False

    def note(self, digest: str, seen: Stamp) -> None:
        """The files had this stamp before they were read, and were sound. Raises OSError where it cannot be written."""
        self._stamps[digest] = seen
        write_private(self._path, msgspec.json.encode(self._stamps))


def _load(path: Path) -> dict[str, Stamp]:
    try:
        return dict(msgspec.json.decode(path.read_bytes(), type=Mapping[str, Stamp]))
    except (OSError, msgspec.DecodeError):
        return {}  # the worst that follows is that artifacts are read once more
