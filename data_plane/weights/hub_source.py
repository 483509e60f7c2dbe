"""Models of a Hugging Face hub: only the files that are safe to open, of one commit. Knows nothing of their content.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold, as in every client of the hub.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's, by the library's version
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from data_plane.weights.errors import SourceError
from data_plane.weights.hf_model import SHARD_NAME, SMALL_FILES
from data_plane.weights.progress import Progress

_POLL_S = 0.2
_RETRIED_STATUS = (408, 425, 429)


def download_snapshot(
    repository: str, revision: str | None, folder: Path, progress: Progress, *, max_bytes: int
) -> Path:
    """Real files, no links, of `repository` in `folder`. Raises SourceError, fatal if the hub knows no such model."""
    name = f"{repository}@{revision}" if revision else repository
    progress.update("download", 0, 0)
    try:
        if constants.HF_HUB_OFFLINE:
            return _from_cache(repository, revision, folder)
        return _from_hub(repository, revision, folder, progress, max_bytes)
    except (RevisionNotFoundError, RepositoryNotFoundError, EntryNotFoundError, HFValidationError) as error:
        if isinstance(error, GatedRepoError):
            raise SourceError(f"{name} is gated: accept its terms on the hub and set HF_TOKEN", fatal=True) from error
        if isinstance(error, LocalEntryNotFoundError):
            raise SourceError(
                f"{name} could not be had from the hub or its cache: {_brief(error)}", fatal=False
            ) from error
        raise SourceError(
            f"the hub {constants.ENDPOINT} has no model {name} for this user ({_brief(error)}); check the name, the "
            "revision, and HF_TOKEN if it is private",
            fatal=True,
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        fatal = 400 <= status < 500 and status not in _RETRIED_STATUS
        raise SourceError(f"the hub answered {status} for {name}: {_brief(error)}", fatal=fatal) from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise SourceError(
            f"the hub {constants.ENDPOINT} could not be reached for {name}: {_brief(error)}; check the network",
            fatal=False,
        ) from error


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _from_hub(repository: str, revision: str | None, folder: Path, progress: Progress, max_bytes: int) -> Path:
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if _wanted(file.rfilename)}
    if not any(name.endswith(".safetensors") for name in sizes):
        raise SourceError(
            f"{repository} has no safetensors: pickled weights can run code and are never opened; choose a model that "
            "is published as safetensors",
            fatal=True,
        )
    total = sum(sizes.values())
    if total > max_bytes:
        raise SourceError(f"{repository} has {total} bytes; {max_bytes} are allowed: raise --max-bytes", fatal=True)
    folder.mkdir(parents=True, exist_ok=True)
    with _watched(folder, lambda done: progress.update("download", min(done, total), total)):
        snapshot_download(repository, revision=info.sha, local_dir=folder, allow_patterns=sorted(sizes), max_workers=4)
    progress.update("download", total, total)
    return folder


def _wanted(name: str) -> bool:
    """Only of the top folder: repositories keep other formats, and copies, in folders below."""
    return name in SMALL_FILES or SHARD_NAME.fullmatch(name) is not None


class _watched:
    """Tells the size of a folder while its block runs; the hub's library shows progress only as terminal bars."""

    def __init__(self, folder: Path, tell: Callable[[int], None]) -> None:
        self._folder, self._tell = folder, tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download-progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._tell(sum(_size(file) for file in self._folder.rglob("*")))


def _size(file: Path) -> int:
    try:
        return file.stat().st_blocks * 512 if file.is_file() else 0
    except FileNotFoundError:
        return 0  # renamed from its partial name between listing and asking


def _from_cache(repository: str, revision: str | None, folder: Path) -> Path:
    """Offline: the cache's snapshot is links into its own `blobs`; what they name is copied, nothing beyond."""
    patterns = [*SMALL_FILES, "*.safetensors"]
    snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    blobs = snapshot.parent.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for file in snapshot.iterdir():
        if _wanted(file.name) and file.resolve().is_relative_to(blobs) and file.is_file():
            shutil.copyfile(file.resolve(), folder / file.name)
    return folder
