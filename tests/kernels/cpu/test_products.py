"""Products of every instruction set against their plain twins, and bit for bit against each other and themselves."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.decoder import Tiles, multiply, pack_plain
from tests.kernels.cpu.backends import Backends

TOLERANCE = {"bfloat16": 1e-6, "float32": 1e-6, "int8": 1e-6, "int4-32": 1e-6, "int4-64": 1e-6, "int4-128": 1e-6}
"""Relative to the largest value. Whole numbers are exact; sums of float32 are of another order than the twin's."""
ROWS = (1, 3, 4, 5, 13, 16, 17, 33)
SHAPES = {"round": (64, 256), "ugly": (37, 71)}
"""Rows and columns of the matrix; int4's columns are brought to whole groups."""

kinds = pytest.mark.parametrize("kind", TOLERANCE)
shapes = pytest.mark.parametrize("shape", SHAPES)


class Matrix:
    """A random matrix as stored, and its product by the twin."""

    def __init__(self, kind: str, rows: int, columns: int, extreme: bool = False) -> None:
        random = np.random.default_rng(rows * 1000 + columns)
        self.kind, _, size = kind.partition("-")
        group = int(size or 1)
        self.rows, self.columns = rows, -(-columns // group) * group
        if self.kind in ("bfloat16", "float32"):
            self.values = torch.from_numpy(random.standard_normal((rows, self.columns), dtype=np.float32))
            self.values = self.values.to(torch.bfloat16) if self.kind == "bfloat16" else self.values
            return
        low, high = (0, 15) if self.kind == "int4" else (-127, 127)
        self.codes = random.integers(low, high, (rows, self.columns), dtype=np.int16, endpoint=True)
        if extreme:
            self.codes[:] = np.where(np.arange(rows)[:, None] % 2 == 0, high, low)
        groups = (rows, self.columns // group) if self.kind == "int4" else (rows,)
        self.scale = random.random(groups, dtype=np.float32).astype(np.float16)
        self.minimum = random.standard_normal(groups, dtype=np.float32).astype(np.float16)

    @property
    def tiles(self) -> Tiles:
        if self.kind == "bfloat16":
            return pack_plain(self.values.view(torch.uint16).numpy(), self.kind, 2)
        if self.kind == "float32":
            return pack_plain(self.values.numpy(), self.kind, 2)
        if self.kind == "int8":
            codes = padded(self.codes, 16, 64).astype(np.int8)
            tiles = codes.reshape(len(codes) // 16, 16, -1, 4).transpose(0, 2, 1, 3)
            return Tiles("int8", self.rows, self.columns, copy(tiles), padded(self.scale.astype(np.float32), 16))
        codes = padded(self.codes, 16, 1).astype(np.uint8)
        # [tile, row, group of 32, eight, half, column] to [tile, group, eight, half, row, column]
        halves = codes.reshape(len(codes) // 16, 16, -1, 4, 2, 4).transpose(0, 2, 3, 4, 1, 5)
        weight = copy(halves[:, :, :, 0] | halves[:, :, :, 1] << 4).reshape(len(codes) // 16, -1, 4, 64)
        return Tiles("int4", self.rows, self.columns, weight, by_tile(self.scale), by_tile(self.minimum))

    def twin(self, x: Tensor) -> Tensor:
        if self.kind in ("bfloat16", "float32"):
            return (x.double() @ self.values.double().T).float()
        codes, scale = torch.from_numpy(self.codes), torch.from_numpy(self.scale.astype(np.float32))
        if self.kind == "int8":
            return reference.int8_linear(x, codes, scale)
        return reference.int4_linear(x, codes, scale, torch.from_numpy(self.minimum.astype(np.float32)))


def copy(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(values)


def padded(values: npt.NDArray[np.generic], *multiples: int) -> npt.NDArray[np.generic]:
    return np.pad(values, [(0, -size % by) for size, by in zip(values.shape, multiples, strict=True)])


def by_tile(values: npt.NDArray[np.float16]) -> npt.NDArray[np.generic]:
    """[rows, groups] to [tiles, groups, 16]."""
    whole = padded(values, 16, 1)
    return copy(whole.reshape(len(whole) // 16, 16, -1).transpose(0, 2, 1))


def activations(rows: int, columns: int) -> npt.NDArray[np.float32]:
    x = np.random.default_rng(1).standard_normal((rows, columns), dtype=np.float32) * 3
    x[0, ::7] *= 20
    x[rows // 2] = 0
    return x


@kinds
@shapes
def test_against_the_twin(backends: Backends, backend: str, kind: str, shape: str) -> None:
    matrix = Matrix(kind, *SHAPES[shape])
    x = activations(max(ROWS), matrix.columns)
    with backends.using(backend):
        tiles = matrix.tiles
        got = multiply(tiles, x, backend)
        expected = matrix.twin(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[kind] * np.abs(expected).max())
        assert not got[max(ROWS) // 2].any(), "a token of zeros gives zeros"
        for rows in ROWS:
            np.testing.assert_array_equal(multiply(tiles, x[:rows], backend), got[:rows])
            np.testing.assert_array_equal(multiply(tiles, x[-rows:], backend), got[-rows:])


@kinds
@shapes
@pytest.mark.parametrize("other", ["avx512_vnni", "amx"])
def test_every_instruction_set_gives_the_same_bits(backends: Backends, other: str, kind: str, shape: str) -> None:
    matrix = Matrix(kind, *SHAPES[shape])
    x = activations(20, matrix.columns)
    results: list[npt.NDArray[np.float32]] = []
    for name in ("avx2", other):
        with backends.using(name):
            results.append(multiply(matrix.tiles, x, name))
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize(("kind", "columns"), [("int8", 2624), ("int4-32", 96)])
def test_the_largest_sums(backends: Backends, backend: str, kind: str, columns: int) -> None:
    """Beyond 2²⁴ for int8, to the limits of 16 bits for int4."""
    matrix = Matrix(kind, 32, columns, extreme=True)
    x = np.full((6, columns), 127, dtype=np.float32) * np.array([1, -1, 2, -2, 0.5, -0.5], dtype=np.float32)[:, None]
    with backends.using(backend):
        got = multiply(matrix.tiles, x, backend)
    expected = matrix.twin(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    if kind == "int8":
        np.testing.assert_array_equal(got, expected)


@kinds
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_row(backends: Backends, backend: str, kind: str, bad: float) -> None:
    matrix = Matrix(kind, *SHAPES["ugly"])
    x = activations(7, matrix.columns)
    with backends.using(backend):
        tiles = matrix.tiles
        good = multiply(tiles, x, backend)
        x[2, 5] = bad
        got = multiply(tiles, x, backend)
    assert not np.isfinite(got[2]).any()
    np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(good, 2, 0))
