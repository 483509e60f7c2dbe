"""What loading a model gives. Imports no torch."""

from dataclasses import dataclass

from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Executor
from data_plane.weights.layout import ModelConfig

BLOCK_SIZE = 16
"""Tokens a KV block."""

NUMERICAL_ERROR = (
    "numerical_error: the model's logits for this request are not finite numbers, so no token can be chosen; "
    "other requests are not affected."
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine needs, and what the model is. `path`: which kernels run it, for people to read."""

    executor: Executor
    config: EngineConfig
    model_config: ModelConfig
    path: str = "torch"
