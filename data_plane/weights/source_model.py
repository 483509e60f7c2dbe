"""What every readable source comes down to: a config, a tokenizer, and tensors by the artifact's names."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from data_plane.weights.artifact import TokenizerFiles
from data_plane.weights.errors import ModelError
from data_plane.weights.layout import ModelConfig


@dataclass(frozen=True, slots=True)
class SourceModel:
    """`read_tensor` gives the tensor of `tensor_layout(config)` with that name, fused and in the artifact's layout."""

    config: ModelConfig
    tokenizer: TokenizerFiles
    read_tensor: Callable[[str], torch.Tensor]
    chat_template: str | None
    licence: str | None


def fuse(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The rows of `parts` one after another, as the artifact's tensor `name`; raises ModelError if they do not fit."""
    if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise ModelError(f"the parts of {name} have the shapes {shapes}, which cannot be stacked; get a sound file")
    return parts[0] if len(parts) == 1 else torch.cat(parts)
