"""What every readable source comes down to: a config, a tokenizer, and tensors by the artifact's names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from data_plane.weights.errors import ModelError
from data_plane.weights.layout import ModelConfig
from data_plane.weights.quantize import Int4Matrix

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""By the names that a config may give."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """`tokenizer`: tokenizer.json as bytes. `config`: what tokenizer_config.json says."""

    tokenizer: bytes
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SourceModel:
    """`read_tensor` gives the tensor of `tensor_layout(config)` with that name, fused and in the artifact's layout, in
    the config's dtype; `read_exact` the same in float32. `read_int4` gives a matrix by the source's own 4-bit blocks,
    or None where it has none.
    """

    config: ModelConfig
    tokenizer: TokenizerFiles
    read_tensor: Callable[[str], torch.Tensor]
    chat_template: str | None
    licence: str | None
    read_exact: Callable[[str], torch.Tensor]
    read_int4: Callable[[str], Int4Matrix | None] = lambda name: None


def fuse(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The rows of `parts` one after another, as the artifact's tensor `name`; raises ModelError if they do not fit."""
    if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise ModelError(f"the parts of {name} have the shapes {shapes}, which cannot be stacked; get a sound file")
    return parts[0] if len(parts) == 1 else torch.cat(parts)
