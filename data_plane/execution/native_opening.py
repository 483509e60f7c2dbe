"""An artifact opened for the native decoder: its file mapped and its weights found, at any time before a start.

Reads no values: where they are quantized the weights are views of the file. Knows nothing of devices or KV caches.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path

from data_plane.execution.native_model import ArtifactSource, fits, read_weights
from data_plane.weights.mapped import CONFIG, MANIFEST, TENSORS, MappedArtifact, open_mapped
from kernels.cpu.decoder import Weights
from kernels.cpu.library import backend_name

POPULATE_BYTES = 1 << 30
"""Of files up to so many bytes all pages are entered in the process's tables: they were read a short while ago, and
most likely are in memory. A larger one might have to be read again for it."""
_POPULATE_READ = getattr(mmap, "MADV_POPULATE_READ", 22)
"""Linux 5.14 and later; Python has no name for it before 3.14, and on other systems it means nothing."""

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """`weights` is None where they would have to be copied: plain matrices are put into tiles."""

    artifact: MappedArtifact
    weights: Weights | None
    stamp: _Stamp

    def is_still(self, folder: Path) -> bool:
        """Whether the folder holds the very files that were opened."""
        try:
            return self.artifact.path == folder and self.stamp == _stamp(folder)
        except OSError:
            return False  # the start will say what is missing


def open_ahead(folder: Path) -> Opened | None:
    """For a start that may come; None for a model that the native decoder does not serve. Raises ArtifactError."""
    if not backend_name():
        return None
    try:
        stamp = _stamp(folder)
    except OSError:
        return None
    artifact = open_mapped(folder)
    if not fits(artifact.config, artifact.forms):
        return None
    matrices = (form for name, form in artifact.forms.items() if _is_matrix(artifact, name))
    weights = None if "plain" in matrices else read_weights(artifact.config, ArtifactSource(artifact), 1)
    populate(artifact)
    return Opened(artifact, weights, stamp)


def populate(artifact: MappedArtifact) -> bool:
    """Enters all pages of the file in this process's tables, and says whether it did: for a large file, or under an
    older kernel, they are entered as they are read."""
    if len(artifact.data) > POPULATE_BYTES:
        return False
    try:
        artifact.data.madvise(_POPULATE_READ)
    except OSError:
        return False
    return True


def _is_matrix(artifact: MappedArtifact, name: str) -> bool:
    return name in artifact.spans and len(artifact.spans[name].shape) > 1


def _stamp(folder: Path) -> _Stamp:
    told = [(folder / name).stat() for name in (CONFIG, MANIFEST, TENSORS)]
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in told)
