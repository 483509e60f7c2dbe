"""JSON from files that nobody vouches for: bounded in size, without duplicate keys. Knows nothing of models."""

import json
from pathlib import Path
from typing import Any, cast

from data_plane.weights.errors import ArtifactError


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers that disagree on which duplicate wins can be shown two different files."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ArtifactError(f"the JSON object has the key {repeated[:100]!r} twice; keep one of them")
    return unique


def _no_constant(name: str) -> None:
    raise ArtifactError(f"the JSON holds {name}, which is not a JSON number")


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `raw`; raises ArtifactError, naming `what`, for anything else."""
    try:
        value: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_pairs, parse_constant=_no_constant)
    except ArtifactError as error:
        raise ArtifactError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{what} is not valid UTF-8 JSON ({str(error)[:200]}); make the file again") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{what} must be a JSON object, not {type(value).__name__}")
    return cast("dict[str, Any]", value)


def read_object(path: Path, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object in the file `path`, refused above `max_bytes` before it is read."""
    return parse_object(read_bounded(path, max_bytes=max_bytes), path.name)


def refuse_irregular(path: Path) -> None:
    """ArtifactError for a symbolic link, a device, a pipe, a folder or nothing at all."""
    if path.is_symlink():
        raise ArtifactError(f"{path.name} is a symbolic link, which is never followed; put the file itself there")
    if not path.is_file():
        raise ArtifactError(f"{path.name} is missing in {path.parent}, or is not a regular file; make the folder again")


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """The bytes of a regular file that is no symbolic link and at most `max_bytes` long."""
    refuse_irregular(path)
    size = path.stat().st_size
    if size > max_bytes:
        raise ArtifactError(f"{path.name} has {size} bytes, more than the {max_bytes} allowed for it")
    with path.open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ArtifactError(f"{path.name} grew past the {max_bytes} bytes allowed for it while it was read")
    return raw
