"""What every readable source comes down to: a config, a tokenizer, and tensors by the artifact's names."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from data_plane.weights.artifact import TokenizerFiles
from data_plane.weights.layout import ModelConfig


@dataclass(frozen=True, slots=True)
class SourceModel:
    """`read_tensor` gives the tensor of `tensor_layout(config)` with that name, fused and in the artifact's layout."""

    config: ModelConfig
    tokenizer: TokenizerFiles
    read_tensor: Callable[[str], torch.Tensor]
    chat_template: str | None
    licence: str | None
