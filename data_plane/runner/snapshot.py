"""Blocks of a KV cache in a file, for the next runner of the same endpoint and artifact. Knows nothing of engines.

The blocks come first, one after the other, then an index in msgpack, then a tail of fixed size with the index's length
and checksum: what is cut off anywhere has no tail. Each block has a checksum of its own, which is compared when it is
read. A file that is damaged, or made for other values, is deleted: it only ever saves work.
"""

import os
import secrets
import stat
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import structlog

from data_plane.engine.prefix_cache import DIGEST_BYTES
from data_plane.engine.shelf import Kept

log = structlog.get_logger()

MAGIC = b"ebb kv 1"
"""The 1 grows with whatever changes the values that a model computes, or this format."""
MOST_INDEX_BYTES = 64 << 20
_TAIL = struct.Struct("<QI8s")
Names = frozenset[bytes]


class Damaged(Exception):
    """The file is not what it should be; the message says in what."""


class _Block(msgspec.Struct, array_like=True, frozen=True):
    name: bytes
    before: bytes
    labels: tuple[int, ...]
    uses: float
    checksum: int


class _Index(msgspec.Struct, array_like=True, frozen=True):
    form: str
    """All that the values depend on, the artifact included."""
    secret: bytes
    block_bytes: int
    blocks: tuple[_Block, ...]


class Snapshot:
    """An open file: the engine's shelf. Its content stays readable when another file takes its place."""

    def __init__(self, path: Path, descriptor: int, index: _Index) -> None:
        self.path = path
        self.secret = index.secret
        # what a life of the runner before this one had a use for counts half
        self.kept: Sequence[Kept] = [Kept(b.name, b.before, b.labels, b.uses / 2) for b in index.blocks]
        self._descriptor = descriptor
        self._size = index.block_bytes
        self._places = {block.name: (at, block.checksum) for at, block in enumerate(index.blocks)}
        self._is_damaged = False

    @property
    def names(self) -> Names:
        """Of all its blocks; none where it was found damaged."""
        return frozenset(()) if self._is_damaged else frozenset(self._places)

    def read(self, name: bytes) -> bytes | None:
        """What a block holds; None, and the file is deleted, where that is not what was written."""
        at, checksum = self._places[name]
        why = f"block {at} is not what was written"
        try:
            content = os.pread(self._descriptor, self._size, at * self._size)
        except OSError as error:
            content, why = b"", str(error)
        if len(content) == self._size and zlib.crc32(content) == checksum:
            return content
        self._is_damaged = True
        _discard(self.path, self._descriptor, why)
        return None

    def close(self) -> None:
        """Nothing is read any more."""
        os.close(self._descriptor)


def open_snapshot(path: Path, form: str, block_bytes: int) -> Snapshot | None:
    """The file at `path`, if it is whole and holds values of this form; else None, and it is deleted."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("snapshot.unreadable", path=str(path), error=str(error))
        return None
    try:
        index = _read_index(descriptor, form, block_bytes)
        # files that were used lately are kept longest
        os.utime(descriptor)
    except (Damaged, OSError, msgspec.DecodeError) as error:
        _discard(path, descriptor, str(error))
        os.close(descriptor)
        return None
    return Snapshot(path, descriptor, index)


def _read_index(descriptor: int, form: str, block_bytes: int) -> _Index:
    told = os.fstat(descriptor)
    size = told.st_size
    if not stat.S_ISREG(told.st_mode) or told.st_uid != os.geteuid():
        raise Damaged("it is no file of ours")
    tail = os.pread(descriptor, _TAIL.size, max(0, size - _TAIL.size))
    if len(tail) != _TAIL.size:
        raise Damaged(f"it has {size} bytes, which is not even an end")
    length, checksum, magic = _TAIL.unpack(tail)
    if magic != MAGIC or length > min(size - _TAIL.size, MOST_INDEX_BYTES):
        raise Damaged("it is cut off, or of another version")
    raw = os.pread(descriptor, length, size - _TAIL.size - length)
    if len(raw) != length or zlib.crc32(raw) != checksum:
        raise Damaged("its index is not what was written")
    index = msgspec.msgpack.decode(raw, type=_Index)
    if index.form != form or index.block_bytes != block_bytes:
        raise Damaged(f"its values are of '{index.form}' and are wanted of '{form}'")
    if size != len(index.blocks) * block_bytes + length + _TAIL.size:
        raise Damaged(f"{len(index.blocks)} blocks of {block_bytes} bytes do not make {size} bytes")
    _check_chains(index.blocks)
    return index


def _check_chains(blocks: Sequence[_Block]) -> None:
    known = {b""}
    for block in blocks:
        if len(block.name) != DIGEST_BYTES or block.name in known or block.before not in known:
            raise Damaged("its blocks do not follow each other")
        known.add(block.name)


def write_snapshot(
    path: Path, form: str, secret: bytes, block_bytes: int, blocks: Iterable[tuple[Kept, bytes | None]]
) -> int:
    """Replaces the file in one step, mode 0600; how many blocks it has. `blocks`: each after those before it, and None
    where its content is not to be had: then those after it are left out too. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    index: list[_Block] = []
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0) as file:
            known = {b""}
            for kept, content in blocks:
                if content is None or kept.before not in known:
                    continue
                file.write(content)
                known.add(kept.name)
                index.append(_Block(kept.name, kept.before, kept.labels, kept.uses, zlib.crc32(content)))
            raw = msgspec.msgpack.encode(_Index(form, secret, block_bytes, tuple(index)))
            file.write(raw + _TAIL.pack(len(raw), zlib.crc32(raw), MAGIC))
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    return len(index)


def _discard(path: Path, descriptor: int, why: str) -> None:
    log.warning("snapshot.discarded", path=str(path), why=why)
    try:
        # another runner may have replaced it meanwhile
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            path.unlink()
    except OSError:
        return  # it is gone already, or it stays and is refused again
