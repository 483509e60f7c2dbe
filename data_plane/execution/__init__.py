"""Runs batches of the engine on a device: `load` turns an artifact into an executor."""

from data_plane.execution.loading import Loaded, load

__all__ = ["Loaded", "load"]
