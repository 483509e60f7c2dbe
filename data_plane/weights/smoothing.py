"""Moves the outliers of activations into weights, where one scale a row bears them. Knows nothing of how they are seen.

int8 products round a token's activations by one scale for all channels, so that a channel of large values costs all
others their precision. Dividing a channel by s where it is made and multiplying its column of the next matrix by s
changes no result (SmoothQuant, Xiao et al., 2022): the norms make the inputs of qkv, of gate and up and of an output
matrix of its own, and the rows of up make those of down. s = sqrt(largest activation / largest weight) of the channel
shares the burden. SmolLM2-135M by the gate's text, without and with: perplexity +3.0 % and +1.55 %, mean KL 0.033 and
0.015 nats. Of the loss without, rounded weights are next to nothing; the inputs of qkv, gate and up, and down are it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from data_plane.weights.quantize import Int4Matrix
from data_plane.weights.source_model import SourceModel

_LEAST = 1e-5
"""Channels that are always 0 must not divide by it."""
_NORMS = {"attn_norm.weight": "attention.qkv.weight", "mlp_norm.weight": "mlp.gate_up.weight"}
_FINAL, _OUTPUT = "norm.weight", "lm_head.weight"


def smoothed(model: SourceModel, ranges: Callable[[], Mapping[str, Tensor]]) -> SourceModel:
    """The same model with its outliers moved, tensor by tensor as they are read.

    `ranges`, called when the first is read: for each matrix, by its name, the largest magnitude that each of its input
    channels takes, float32 [in]. A matrix that it does not name stays as it is.
    """
    smoothing = _Smoothing(model, ranges)
    return replace(
        model, read_tensor=smoothing.read_tensor, read_exact=smoothing.read_exact, read_int4=smoothing.read_int4
    )


class _Smoothing:
    def __init__(self, model: SourceModel, ranges: Callable[[], Mapping[str, Tensor]]) -> None:
        self._model = model
        self._ranges = cache(ranges)

    def read_tensor(self, name: str) -> Tensor:
        matrix = self._after_norm(name)
        if matrix is None:
            return self._model.read_tensor(name)
        return self._divided_norm(name, matrix)

    def read_exact(self, name: str) -> Tensor:
        weight = self._model.read_exact(name)
        prefix, _, last = name.rpartition("mlp.")
        if last == "gate_up.weight":
            # the second half is up, whose rows are the columns of down
            weight = weight.clone()
            weight[self._model.config.intermediate_size :] /= self._share(f"{prefix}mlp.down.weight")[:, None]
        if last == "down.weight":
            return weight * self._share(name)
        norm = self._before_matrix(name)
        if norm is None:
            return weight
        # what the norm was really divided by, its new values being rounded to the config's dtype
        old, new = self._model.read_exact(norm), self._divided_norm(norm, name).float()
        return weight * torch.where(new == 0, 1.0, old / new)

    def read_int4(self, name: str) -> Int4Matrix | None:
        """None: the source's own blocks hold the values as they were."""

    def _divided_norm(self, norm: str, matrix: str) -> Tensor:
        old = self._model.read_tensor(norm)
        return (self._model.read_exact(norm) / self._share(matrix)).to(old.dtype)

    def _share(self, matrix: str) -> Tensor:
        """s of each input channel of `matrix`; ones where nothing is known of it."""
        weight = self._model.read_exact(matrix)
        seen = self._ranges().get(matrix)
        if seen is None:
            return torch.ones(weight.shape[1])
        return (seen.clamp_min(_LEAST) / weight.abs().amax(dim=0).clamp_min(_LEAST)).sqrt()

    def _after_norm(self, name: str) -> str | None:
        """The matrix that alone reads what the norm `name` makes; None for all other tensors."""
        if name == _FINAL:
            # a tied output matrix is the embedding, which is read elsewhere too
            return None if self._model.config.tie_word_embeddings else _OUTPUT
        prefix, last = _split(name)
        return prefix + _NORMS[last] if last in _NORMS else None

    def _before_matrix(self, name: str) -> str | None:
        if name == _OUTPUT:
            return _FINAL
        prefix, last = _split(name)
        return next((prefix + norm for norm, matrix in _NORMS.items() if matrix == last), None)


def _split(name: str) -> tuple[str, str]:
    """("layers.3.", "attention.qkv.weight") of a layer's tensor; ("", name) of others."""
    if not name.startswith("layers."):
        return "", name
    layers, index, rest = name.split(".", 2)
    return f"{layers}.{index}.", rest
