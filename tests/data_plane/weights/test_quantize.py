"""Quantizing: values come back within their step, tiles hold them, GGUF's own blocks are not rounded again, and an
artifact of any form is opened only if its tensors are what its config says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from test_artifact import ORIGIN, TOKENIZER, tiny_config
from tiny_gguf import write_gguf

from data_plane.weights.artifact import draft, open_artifact, publish
from data_plane.weights.dequantize import QUANTIZATIONS, dequantize, four_bit_blocks
from data_plane.weights.encode import Contents, plain_contents, quantized_contents
from data_plane.weights.errors import ArtifactError, ModelError
from data_plane.weights.gguf_model import open_gguf_model
from data_plane.weights.layout import tensor_layout
from data_plane.weights.mapped import open_mapped, verify_artifact
from data_plane.weights.quantize import (
    quantize_fp8,
    quantize_int4,
    quantize_int8,
    tile_groups,
    tile_int4,
    tile_int8,
)
from data_plane.weights.source_model import SourceModel
from kernels import ops

SHAPES = pytest.mark.parametrize(("rows", "columns"), [(64, 128), (37, 96)])


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@SHAPES
def test_int8(rows: int, columns: int) -> None:
    weight = randn(rows, columns)
    weight[3] = 0
    q, scale = quantize_int8(weight)
    error = (ops.dequantize_int8(q, scale) - weight).abs()
    assert bool((error <= scale[:, None] * 0.501).all())
    assert int(q.abs().max()) == 127 and not q[3].any()
    tiles = tile_int8(q)
    assert tiles.shape == (-(-rows // 16), -(-columns // 64) * 16, 16, 4)
    assert torch.equal(ops.rows_of_int8(tiles, rows, columns), q)


@SHAPES
@pytest.mark.parametrize("group", [32, 96])
def test_int4(rows: int, columns: int, group: int) -> None:
    if columns % group:
        columns = group
    weight = randn(rows, columns)
    weight[3], weight[4] = 0, 0.25
    found = quantize_int4(weight, group)
    scale, minimum = found.scale.float(), found.minimum.float()
    values = ops.dequantize_int4(found.codes, scale, minimum)
    assert torch.equal(values[3:5], weight[3:5])
    low, high = weight.view(rows, -1, group).aminmax(dim=2)
    step = ((high - low) / 15).half().float()
    plain = ops.dequantize_int4(
        ((weight.view(rows, -1, group) - low[..., None]) / step[..., None].clamp_min(1e-9)).round().view(rows, columns),
        step,
        low.half().float(),
    )
    assert float((values - weight).square().mean()) < 0.97 * float((plain - weight).square().mean())
    assert torch.equal(ops.rows_of_int4(tile_int4(found.codes), rows), found.codes)
    assert torch.equal(ops.rows_of_groups(tile_groups(found.scale), rows), scale)


def test_fp8() -> None:
    weight = randn(8, 40)
    values, scale = quantize_fp8(weight)
    assert values.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(values.float() * scale[:, None], weight, rtol=2**-4, atol=float(scale.max()) / 256)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1])
def test_four_bit_blocks_are_kept_to_the_last_bit(kind: gguf.GGMLQuantizationType) -> None:
    raw: Any = gguf.quantize(randn(6, 96).numpy(), kind)
    ours = QUANTIZATIONS[int(kind)]
    found = four_bit_blocks(ours, memoryview(raw.tobytes()), (6, 96))
    assert found is not None
    codes, scale, minimum = found
    values = ops.dequantize_int4(codes, scale.float(), minimum.float())
    reference: Any = gguf.dequantize(raw, kind)
    assert np.array_equal(values.numpy(), reference)
    assert torch.equal(values, dequantize(ours, memoryview(raw.tobytes()), (6, 96), torch.float32))


def test_blocks_that_float16_cannot_hold_are_not_taken_as_they_are() -> None:
    raw = np.zeros(1, dtype=QUANTIZATIONS[2].block)
    raw["d"] = 9000
    assert four_bit_blocks(QUANTIZATIONS[2], memoryview(raw.tobytes()), (1, 32)) is None
    assert four_bit_blocks(QUANTIZATIONS[8], memoryview(bytes(34)), (1, 32)) is None


def quantized_gguf(path: Path, kinds: dict[str, gguf.GGMLQuantizationType]) -> SourceModel:
    """The tiny model with its matrices stored as `kinds` say, by the ends of their names."""
    write_gguf(path / "plain.gguf")
    reader: Any = gguf.GGUFReader(path / "plain.gguf")
    writer = gguf.GGUFWriter(path / "m.gguf", "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        kind = next((kind for end, kind in kinds.items() if tensor.name.endswith(end)), None)
        data = np.array(tensor.data) if kind is None else gguf.quantize(np.array(tensor.data), kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_gguf_model(path / "m.gguf", "float32")


def write(root: Path, model: SourceModel, quantization: str, vocabulary: str = "") -> Path:
    contents = quantized_contents(model, quantization, vocabulary)
    root.mkdir(exist_ok=True)
    return publish(root, draft(root / "draft", contents, model.tokenizer, ORIGIN), {"quality": {"kl": 0.5}})


def values_of(path: Path, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    tensors, stem = open_artifact(path).tensors, name.removesuffix("weight")
    factors = [ops.rows_of_groups(tensors[stem + part], shape[0]) for part in ("scale", "min")]
    return ops.dequantize_int4(ops.rows_of_int4(tensors[name], shape[0]), factors[0], factors[1])


def test_a_4_bit_gguf_moves_whole(tmp_path: Path) -> None:
    """Fused, its rotary rows put back in order: every value is the source's own."""
    kinds = {"attn_v.weight": gguf.GGMLQuantizationType.Q4_0, "weight": gguf.GGMLQuantizationType.Q4_1}
    kinds = {"norm.weight": gguf.GGMLQuantizationType.F32, **kinds}
    model = quantized_gguf(tmp_path, kinds)
    path = write(tmp_path / "artifacts", model, "int4", "int4")
    verify_artifact(path)
    mapped = open_mapped(path)
    assert mapped.manifest["quality"] == {"kl": 0.5}
    assert (mapped.config.quantization, mapped.manifest["quantization"]) == ("int4", "int4")
    for name, shape in tensor_layout(model.config).items():
        matrix = len(shape) == 2
        assert mapped.forms[name] == ("int4" if matrix else "plain")
        if matrix:
            assert torch.equal(values_of(path, name, shape), model.read_exact(name)), name


def test_a_part_of_another_kind_is_rounded_alone(tmp_path: Path) -> None:
    kinds = {
        "norm.weight": gguf.GGMLQuantizationType.F32,
        "attn_v.weight": gguf.GGMLQuantizationType.Q8_0,
        "weight": gguf.GGMLQuantizationType.Q4_1,
    }
    model = quantized_gguf(tmp_path, kinds)
    name = "layers.0.attention.qkv.weight"
    shape = tensor_layout(model.config)[name]
    values, exact = values_of(write(tmp_path / "artifacts", model, "int4"), name, shape), model.read_exact(name)
    assert torch.equal(values[:96], exact[:96])
    torch.testing.assert_close(values[96:], exact[96:], rtol=0, atol=0.3)
    assert not torch.equal(values[96:], exact[96:])


def random_model(**changes: Any) -> SourceModel:
    config = tiny_config(**changes)
    tensors = {name: randn(*shape) for name, shape in tensor_layout(config).items()}
    return SourceModel(config, TOKENIZER, tensors.__getitem__, None, None, tensors.__getitem__)


@pytest.mark.parametrize(
    ("quantization", "vocabulary", "dtypes"),
    [("int8", "", {"I8", "F32", "BF16"}), ("fp8", "", {"F8_E4M3", "F32", "BF16"})],
)
def test_odd_sizes(tmp_path: Path, quantization: str, vocabulary: str, dtypes: set[str]) -> None:
    path = write(tmp_path, random_model(), quantization, vocabulary)
    verify_artifact(path)
    assert {span.dtype for span in open_mapped(path).spans.values()} == dtypes
    assert set(open_mapped(path).forms.values()) == {quantization, "plain"}


def test_forms_may_be_mixed(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96}
    path = write(tmp_path, random_model(**sizes), "int4", "int8")
    forms = open_mapped(path).forms
    assert (forms["embed.weight"], forms["lm_head.weight"], forms["norm.weight"]) == ("int8", "int8", "plain")
    assert forms["layers.1.mlp.down.weight"] == "int4"


def test_int4_needs_whole_groups() -> None:
    with pytest.raises(ModelError, match=r"qkv.weight has 12 columns.*groups of 32.*choose int8"):
        quantized_contents(random_model(), "int4")


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = random_model()

    def overflowing(name: str) -> torch.Tensor:
        return model.read_exact(name) * torch.inf

    broken = replace(model, read_exact=overflowing)
    with pytest.raises(ModelError, match=r"embed.weight holds values that are not numbers"):
        write(tmp_path, broken, "int8")


def rewrite_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").chmod(0o644)
    (path / "config.json").write_text(json.dumps(config | changes))


def test_a_config_that_lies_about_its_tensors(tmp_path: Path) -> None:
    path = write(tmp_path, random_model(), "int8")
    rewrite_config(path, quantization="none")
    with pytest.raises(ArtifactError, match=r"embed.weight is I8 \[3, 16, 16, 4\], but its config asks BF16"):
        open_mapped(path)
    rewrite_config(path, quantization="int3")
    with pytest.raises(ArtifactError, match=r"quantization is int3, but must be none, int8, int4, fp8"):
        open_mapped(path)
    rewrite_config(path, quantization="int8", num_layers=1)
    with pytest.raises(ArtifactError, match=r"beyond its config, the tensors layers\.1"):
        open_mapped(path)


def test_missing_factors_are_named(tmp_path: Path) -> None:
    model = random_model()
    whole = quantized_contents(model, "int8")
    specs = {name: dict(parts) for name, parts in whole.specs.items()}
    del specs["norm.weight"]
    specs["layers.0.attention.o.weight"].pop("layers.0.attention.o.scale")
    with pytest.raises(ArtifactError, match=r"o.scale is missing, but its config asks F32 \[16\]"):
        draft(tmp_path / "x", Contents(whole.config, specs, whole.read), model.tokenizer, ORIGIN)


def test_plain_contents_are_counted() -> None:
    config = tiny_config()
    contents = plain_contents(config, lambda name: randn(*tensor_layout(config)[name]))
    assert contents.num_bytes == 2 * sum(torch.Size(shape).numel() for shape in tensor_layout(config).values())
