"""An artifact's tensors on a device, in the form in which a model runs there. Knows nothing of architectures.

On a CPU quantized matrices stay in their tiles, whole numbers and factors. On a GPU each becomes a plain matrix once,
when it is loaded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from data_plane.layers.linear import Int4Linear, Int8Linear, Linear, Projection
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig, tensor_layout
from data_plane.weights.stored import GROUP_SIZES, part_specs
from kernels import ops

_FORMS = {torch.int8: "int8", torch.uint8: "int4", torch.float8_e4m3fn: "fp8"}


def place(
    config: ModelConfig, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What `registry.build` takes: plain tensors in `dtype`, quantized ones as they are (CPU) or plain (CUDA).

    A tensor that is already there in its dtype is not copied. ValueError for fp8 on a CPU; ArtifactError for tensors
    that do not fit the config.
    """
    check_shapes(config, tensors)
    placed: dict[str, Tensor] = {}
    for name, shape in tensor_layout(config).items():
        form = form_of(tensors[name])
        names = part_specs(name, shape, form, config.dtype, GROUP_SIZES[0])
        parts = {part: tensors[part].to(device) for part in names}
        if form == "fp8" and device.type == "cpu":
            raise ValueError(
                f"{name} is stored in fp8, which only GPUs multiply, and the device is cpu; "
                "use an artifact in int8 or int4, or a CUDA device."
            )
        if form == "plain" or device.type != "cpu":
            placed[name] = plain_values(parts, name, shape).to(dtype)
        else:
            placed |= parts
    return placed


def form_of(weight: Tensor) -> str:
    """plain, int8, int4 or fp8: as the dtype of a stored `X.weight` tells."""
    return _FORMS.get(weight.dtype, "plain")


def projection(tensors: Mapping[str, Tensor], stem: str, shape: tuple[int, ...]) -> Projection:
    """The matrix `stem`.weight of `shape` [out, in] with its bias, if it has one, ready to be multiplied with."""
    weight, bias = tensors[f"{stem}.weight"], tensors.get(f"{stem}.bias")
    form, (rows, columns) = form_of(weight), shape
    if form == "int8":
        return Int8Linear(ops.rows_of_int8(weight, rows, columns), tensors[f"{stem}.scale"][:rows], bias)
    if form == "int4":
        factors = [ops.rows_of_groups(tensors[f"{stem}.{part}"], rows) for part in ("scale", "min")]
        return Int4Linear(ops.rows_of_int4(weight, rows), factors[0], factors[1], bias)
    return Linear(weight, bias)


def plain_values(parts: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """The values of the tensor `name` of `shape`, whatever form `parts` hold it in: float32, or as it is if plain."""
    form, stem = form_of(parts[name]), name.removesuffix("weight")
    if form == "plain":
        return parts[name]
    if form == "fp8":
        return parts[name].float() * parts[stem + "scale"][:, None]
    rows, columns = shape
    if form == "int8":
        return ops.dequantize_int8(ops.rows_of_int8(parts[name], rows, columns), parts[stem + "scale"][:rows])
    factors = [ops.rows_of_groups(parts[stem + part], rows) for part in ("scale", "min")]
    return ops.dequantize_int4(ops.rows_of_int4(parts[name], rows), factors[0], factors[1])


def check_shapes(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """ArtifactError for a tensor that is missing, or that has not the shape which its form and the config ask."""
    for name, shape in tensor_layout(config).items():
        if name not in tensors:
            raise ArtifactError(f"Tensor '{name}' is missing from the artifact; import the model again.")
        scale = tensors.get(name.removesuffix("weight") + "scale")
        groups = scale.shape[1] if scale is not None and scale.dim() == 3 else 0
        group = shape[-1] // groups if groups else GROUP_SIZES[0]
        for part, spec in part_specs(name, shape, form_of(tensors[name]), config.dtype, group).items():
            if part not in tensors:
                raise ArtifactError(f"Tensor '{part}' is missing from the artifact; import the model again.")
            if tuple(tensors[part].shape) != spec.shape:
                raise ArtifactError(f"Tensor '{part}' has shape {tuple(tensors[part].shape)}; expected {spec.shape}.")
