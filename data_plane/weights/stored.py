"""How a matrix of the model lies in an artifact: plain, or quantized into tiles that kernels read in place.

Let a matrix `X.weight` have N rows (outputs) and K columns (inputs), N16 = N rounded up to 16, K64 = K rounded up
to 64; padding is zeros. A tile is 16 rows.

* plain: `X.weight` [N, K] in the config's dtype, or float32.
* int8: `X.weight` int8 [N16/16, K64/4, 16, 4], where [t, j, o, i] is row 16t+o, column 4j+i; `X.scale` float32 [N16].
  A value is scale · q, with q in -127 to 127.
* int4: `X.weight` uint8 [N16/16, K/32, 4, 64]. In [t, g, j], byte 4o+i holds in its low half the code of row 16t+o,
  column 32g+8j+i, and in its high half that of column 32g+8j+4+i. `X.scale` and `X.min` are float16 [N16/16, K/G, 16]
  for groups of G columns. A value is scale · code + min, with codes of 0 to 15.
* fp8: `X.weight` float8_e4m3fn [N, K], `X.scale` float32 [N]. For GPUs.

Each tensor's own dtype says which it is, so forms may be mixed. Knows nothing of files, of torch or of how values
are chosen.
"""

from collections.abc import Mapping

from data_plane.weights.errors import ArtifactError, ModelError
from data_plane.weights.layout import ModelConfig, tensor_layout
from data_plane.weights.safetensors_header import TensorSpan, TensorSpec

TILE_ROWS = 16
GROUP_SIZES = (32, 64, 128)
PLAIN_DTYPES = {"bfloat16": "BF16", "float32": "F32"}
"""The safetensors name of each dtype that a config may name."""
_FORM_OF = {"I8": "int8", "U8": "int4", "F8_E4M3": "fp8", "BF16": "plain", "F32": "plain"}


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor of this name is a weight that may be quantized: all but norms and biases."""
    return name.endswith(".weight") and len(shape) == 2


def part_specs(name: str, shape: tuple[int, ...], form: str, dtype: str, group: int) -> dict[str, TensorSpec]:
    """The tensors that hold the model's tensor `name` in `form`; `dtype` is the config's, `group` is for int4.

    ModelError, with the numbers, for a matrix that the form cannot hold.
    """
    if form == "plain":
        return {name: TensorSpec(PLAIN_DTYPES[dtype], shape)}
    stem, (rows, columns) = name.removesuffix("weight"), shape
    tiles = round_up(rows, TILE_ROWS) // TILE_ROWS
    if form == "int8":
        return {
            name: TensorSpec("I8", (tiles, round_up(columns, 64) // 4, TILE_ROWS, 4)),
            stem + "scale": TensorSpec("F32", (tiles * TILE_ROWS,)),
        }
    if form == "fp8":
        return {name: TensorSpec("F8_E4M3", shape), stem + "scale": TensorSpec("F32", (rows,))}
    if columns % group:
        raise ModelError(
            f"{name} has {columns} columns, which are not whole groups of {group} as int4 needs them; choose int8"
        )
    groups = TensorSpec("F16", (tiles, columns // group, TILE_ROWS))
    return {
        name: TensorSpec("U8", (tiles, columns // 32, 4, 64)),
        stem + "scale": groups,
        stem + "min": groups,
    }


def check_stored(config: ModelConfig, spans: Mapping[str, TensorSpan]) -> dict[str, str]:
    """The form of each tensor of the model. ArtifactError where the tensors in `spans` are not those of `config`."""
    layout = tensor_layout(config)
    left, forms = set(spans), dict[str, str]()
    for name, shape in layout.items():
        span = spans.get(name)
        if span is None:
            raise ArtifactError(f"it lacks the tensors {', '.join(sorted(set(layout) - set(spans))[:5])[:300]}")
        form = _form(config, name, shape, span)
        for part, spec in _parts_of(name, shape, form, config, span, spans).items():
            found = spans.get(part)
            if found is None or (found.dtype, found.shape) != (spec.dtype, spec.shape):
                seen = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise ArtifactError(f"tensor {part} is {seen}, but its config asks {spec.dtype} {list(spec.shape)}")
            left.discard(part)
        forms[name] = form
    if left:
        raise ArtifactError(f"it has, beyond its config, the tensors {', '.join(sorted(left)[:5])[:300]}")
    return forms


def _form(config: ModelConfig, name: str, shape: tuple[int, ...], span: TensorSpan) -> str:
    form = _FORM_OF.get(span.dtype, "plain")
    if config.quantization == "none" or not is_matrix(name, shape):
        # a quantized dtype here is refused below, by its spec
        form = "plain"
    return form


def _parts_of(
    name: str, shape: tuple[int, ...], form: str, config: ModelConfig, span: TensorSpan, spans: Mapping[str, TensorSpan]
) -> dict[str, TensorSpec]:
    # what is left plain in a quantized artifact may be kept in float32, which costs nothing for norms and biases
    exact = form == "plain" and config.quantization != "none" and span.dtype == "F32"
    group = GROUP_SIZES[0]
    if form == "int4":
        scale = spans.get(name.removesuffix("weight") + "scale")
        count = scale.shape[1] if scale is not None and len(scale.shape) == 3 else 0
        group = shape[1] // count if count else 0
        if group not in GROUP_SIZES:
            raise ArtifactError(f"tensor {name} of {shape[1]} columns has {count} groups; groups hold 32, 64 or 128")
    try:
        return part_specs(name, shape, form, "float32" if exact else config.dtype, group)
    except ModelError as error:
        raise ArtifactError(str(error)) from None
