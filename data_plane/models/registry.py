"""Which class runs which architecture, and whether the tensors at hand are those it needs."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from data_plane.models.llama import Llama
from data_plane.models.placing import check_shapes
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig
from kernels.ops import Segment

ARCHITECTURES = {"llama": Llama}
"""Mistral, Qwen2 and Qwen3 are Llama to an artifact: its configuration says where they differ."""


class Model(Protocol):
    """What runs a step."""

    def forward(
        self, token_ids: Tensor, positions: Tensor, slots: Tensor, segments: Sequence[Segment], caches: Sequence[Tensor]
    ) -> Tensor:
        """Hidden states [T, hidden] of the step's tokens; their keys and values go into the caches."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] to [rows, vocabulary]."""
        ...


def build(config: ModelConfig, tensors: Mapping[str, Tensor], max_model_len: int) -> Model:
    """The model over `tensors`, which it keeps and does not copy. ArtifactError for what does not fit together."""
    model = ARCHITECTURES.get(config.architecture)
    if model is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ArtifactError(f"Architecture '{config.architecture}' is not supported; Ebb knows {known}.")
    check_shapes(config, tensors)
    return model(config, tensors, max_model_len)
