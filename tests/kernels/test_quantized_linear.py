"""Products with quantized matrices against their plain twins, and tiles against the formula that defines them."""

import pytest
import torch
from torch import Tensor

from kernels import ops, reference

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2}
"""Relative to the largest value. In float32 only int4's sum over groups may be fused or not."""

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randint(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(3))


def activations(tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    x = randn(tokens, columns, seed=1) * 3
    x[0, ::7] *= 20
    x[-1] = 0
    return x.to(dtype)


def close(got: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@dtypes
@pytest.mark.parametrize(("tokens", "rows", "columns"), [(16, 64, 128), (3, 37, 29), (2, 5000, 2600)])
def test_int8(tokens: int, rows: int, columns: int, dtype: torch.dtype) -> None:
    x, q = activations(tokens, columns, dtype), randint(-127, 127, rows, columns).to(torch.int8)
    q[0], x[0] = 127, 1000  # the largest sum: beyond 2²⁴ for the widest
    scale, bias = randn(rows).abs() / 100, randn(rows, seed=2)
    got = ops.int8_linear(x, q, scale, bias)
    close(got, reference.int8_linear(x, q, scale, bias))
    assert torch.equal(got[-1], bias.to(dtype))
    assert got.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(ops.int8_linear(x, q, scale), reference.int8_linear(x, q, scale))


@dtypes
@pytest.mark.parametrize(("tokens", "rows", "columns", "group"), [(16, 64, 128, 32), (3, 37, 96, 96), (5, 48, 256, 64)])
def test_int4(tokens: int, rows: int, columns: int, group: int, dtype: torch.dtype) -> None:
    x, codes = activations(tokens, columns, dtype), randint(0, 15, rows, columns).to(torch.uint8)
    scale, minimum = randn(rows, columns // group).abs() / 10, randn(rows, columns // group, seed=2)
    bias = randn(rows, seed=4)
    got = ops.int4_linear(x, codes, scale, minimum, bias)
    close(got, reference.int4_linear(x, codes, scale, minimum, bias))
    assert torch.equal(got[-1], bias.to(dtype))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, q = activations(9, 64, torch.float32), randint(-127, 127, 48, 64).to(torch.int8)
    scale = randn(48).abs()
    alone = torch.cat([ops.int8_linear(row[None], q, scale) for row in x])
    assert torch.equal(alone, ops.int8_linear(x, q, scale))


def test_rounding_is_to_even_and_by_token() -> None:
    a, s = ops.quantize_activations(torch.tensor([[127.0, 0.5, 1.5, -2.5], [254.0, 1.0, 3.0, -5.0], [0, 0, 0, 0]]))
    assert a.tolist() == [[127, 0, 2, -2], [127, 0, 2, -2], [0, 0, 0, 0]]
    assert s.flatten().tolist() == [1, 2, 0]


@pytest.mark.parametrize(("rows", "columns"), [(32, 128), (37, 70)])
def test_int8_tiles(rows: int, columns: int) -> None:
    tiles = randint(-127, 127, -(-rows // 16), -(-columns // 64) * 16, 16, 4).to(torch.int8)
    got = ops.rows_of_int8(tiles, rows, columns)
    assert got.shape == (rows, columns)
    for row in range(0, rows, 5):
        for column in range(columns):
            assert got[row, column] == tiles[row // 16, column // 4, row % 16, column % 4]


@pytest.mark.parametrize(("rows", "columns"), [(32, 128), (37, 96)])
def test_int4_tiles(rows: int, columns: int) -> None:
    tiles = randint(0, 255, -(-rows // 16), columns // 32, 4, 64).to(torch.uint8)
    got = ops.rows_of_int4(tiles, rows)
    assert got.shape == (rows, columns)
    for row in range(0, rows, 5):
        for column in range(columns):
            group, within = divmod(column, 32)
            eight, place = divmod(within, 8)
            byte = int(tiles[row // 16, group, eight, 4 * (row % 16) + place % 4])
            assert got[row, column] == (byte & 15 if place < 4 else byte >> 4)


def test_group_values() -> None:
    values = randn(3, 2, 16).half()
    got = ops.rows_of_groups(values, 37)
    assert got.shape == (37, 2) and got.dtype == torch.float32
    assert all(got[row, group] == values[row // 16, group, row % 16] for row in range(37) for group in range(2))
