"""Each quantization against the gguf package, bit for bit, on random bytes: every pattern a file can hold."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize as reference

from data_plane.weights.dequantize import QUANTIZATIONS, Quantization, dequantize


@pytest.mark.parametrize("number", sorted(QUANTIZATIONS), ids=lambda n: QUANTIZATIONS[n].name)
@pytest.mark.parametrize("rows", [1, 700])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_equal_to_the_reference_bit_for_bit(number: int, rows: int) -> None:
    kind: Quantization = QUANTIZATIONS[number]
    assert gguf.GGMLQuantizationType[kind.name] == number
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (kind.values, kind.block_bytes)
    raw = np.random.default_rng(number).integers(0, 256, size=(rows, kind.block_bytes * 8), dtype=np.uint8)
    typed = raw.view({"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8))
    expected = reference(typed, gguf.GGMLQuantizationType(number)).astype(np.float32)
    got = dequantize(kind, raw.data.cast("B"), (rows, kind.values * 8), torch.float32).numpy()
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_bfloat16_is_rounded_once_from_float32() -> None:
    values = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    got = dequantize(QUANTIZATIONS[0], values.data.cast("B"), (3, 64), torch.bfloat16)
    assert torch.equal(got, torch.from_numpy(values).to(torch.bfloat16))


def test_more_values_than_one_chunk() -> None:
    raw = np.random.default_rng(1).integers(0, 120, size=(1 << 17, 20), dtype=np.uint8)
    got = dequantize(QUANTIZATIONS[3], raw.data.cast("B"), (1 << 17, 32), torch.float32).numpy()
    np.testing.assert_array_equal(got, reference(raw, gguf.GGMLQuantizationType.Q4_1))
