"""Runs batches of the engine on a device: `load` turns an artifact into an executor.

On a CPU that the native decoder serves, nothing here imports torch: that takes longer than all the rest of a start.
Importing this package sets how long OpenMP's threads spin for each other (unless the environment says so already), and
must come before the first import of torch for that to count.
"""

import os
from collections.abc import Callable
from pathlib import Path

from data_plane.execution import native_loading
from data_plane.execution.loaded import Loaded, LoadOptions
from data_plane.execution.native_opening import Opened, open_ahead

# Left to itself libgomp spins for milliseconds at the end of every operator. With two other busy processes on two cores
# a start then took 6 s and a decode step 1.1 s, against 0.6 s and 0.1 s with this; alone it costs 3 to 12 % of a step.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__all__ = ["LoadOptions", "Loaded", "Opened", "load", "open_ahead"]


def load(
    artifact_dir: Path,
    options: LoadOptions | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
    ahead: Opened | None = None,
) -> Loaded:
    """Loads, sizes the KV cache and warms up; calls `on_phase` with `loading`, `mapped` and `warming`.

    `ahead`: the artifact, where `open_ahead` has opened it already.
    ValueError (ArtifactError) says what is wrong with the artifact or with the options.
    """
    options = options or LoadOptions()
    if native_loading.serves(options) and (loaded := native_loading.load(artifact_dir, options, on_phase, ahead)):
        return loaded
    from data_plane.execution import loading

    return loading.load(artifact_dir, options, on_phase)
