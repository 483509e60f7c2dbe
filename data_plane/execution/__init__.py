"""Runs batches of the engine on a device: `load` turns an artifact into an executor.

Importing it sets how long OpenMP's threads spin for each other (unless the environment says so already), and must come
before the first import of torch for that to count.
"""

import os

# Left to itself libgomp spins for milliseconds at the end of every operator. With two other busy processes on two cores
# a start then took 6 s and a decode step 1.1 s, against 0.6 s and 0.1 s with this; alone it costs 3 to 12 % of a step.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from data_plane.execution.loading import Loaded, load

__all__ = ["Loaded", "load"]
