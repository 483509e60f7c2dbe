"""Which class runs which architecture, and whether the tensors at hand are those it needs."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from data_plane.models.config import ModelConfig, ModelConfigError
from data_plane.models.llama import Llama, expected_shapes
from kernels.ops import Segment

ARCHITECTURES = {
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
}
"""Mistral, Qwen2 and Qwen3 differ from Llama by what the configuration says: a bias, norms of q and k, head sizes."""


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
    """The model over `tensors`, which it keeps and does not copy. ModelConfigError for what does not fit together."""
    model = ARCHITECTURES.get(config.architecture)
    if model is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelConfigError(f"Architecture '{config.architecture}' is not supported; Ebb knows {known}.")
    for name, shape in expected_shapes(config).items():
        if name not in tensors:
            raise ModelConfigError(f"Tensor '{name}' is missing from the artifact; import the model again.")
        if tuple(tensors[name].shape) != shape:
            raise ModelConfigError(f"Tensor '{name}' has shape {tuple(tensors[name].shape)}; expected {shape}.")
    return model(config, tensors, max_model_len)
