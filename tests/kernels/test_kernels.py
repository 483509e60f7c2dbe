"""Each kernel against its plain twin, on a round and an ugly shape, in each dtype. Tolerances are by dtype."""

import pytest
import torch
from torch import Tensor

from kernels import ops, reference
from kernels.ops import Segment

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Relative and absolute: some units in the last place (2⁻²³, 2⁻⁸, 2⁻¹¹) of values near 1."""

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def close(got: Tensor, expected: Tensor, times: float = 1.0) -> None:
    tolerance = TOLERANCE[expected.dtype] * times
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dtypes
@pytest.mark.parametrize("shape", [(16, 64), (3, 1, 37)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = randn(*shape, dtype=dtype) * 3, randn(shape[-1], dtype=dtype, seed=1)
    close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), 3)


@dtypes
@pytest.mark.parametrize("shape", [(16, 64), (5, 26)])
def test_silu_mul(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = randn(*shape, dtype=dtype)
    close(ops.silu_mul(x), reference.silu_mul(x))


@dtypes
@pytest.mark.parametrize(("tokens", "heads", "size"), [(8, 4, 64), (3, 5, 14)])
def test_rotate(tokens: int, heads: int, size: int, dtype: torch.dtype) -> None:
    angles = randn(tokens, 1, size // 2, dtype=torch.float32, seed=1) * 7
    cos, sin = angles.cos().repeat(1, 1, 2), torch.cat((-angles.sin(), angles.sin()), -1)
    whole = randn(tokens, heads + 2, size, dtype=dtype)
    expected = whole.clone()
    ops.rotate_(whole[:, :heads], cos, sin)
    reference.rotate_(expected[:, :heads], cos, sin)
    close(whole, expected)
    assert torch.equal(whole[:, heads:], randn(tokens, heads + 2, size, dtype=dtype)[:, heads:])


@dtypes
@pytest.mark.parametrize(("slots", "tokens", "heads", "size"), [(64, 16, 4, 64), (13, 5, 3, 7)])
def test_store_kv(slots: int, tokens: int, heads: int, size: int, dtype: torch.dtype) -> None:
    cache = randn(slots, 2, heads, size, dtype=dtype)
    expected = cache.clone()
    kv = randn(tokens, 2, heads, size, dtype=dtype, seed=1)
    where = torch.randperm(slots, generator=torch.Generator().manual_seed(2))[:tokens]
    ops.store_kv_(cache, kv, where)
    reference.store_kv_(expected, kv, where)
    assert torch.equal(cache, expected)


@dtypes
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 64), (9, 3, 10), (3, 3, 7)])
def test_paged_attention(heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> None:
    """A decode, a whole prefill, a later chunk, a chunk longer than one piece of queries; in place and gathered."""
    cache = randn(700, 2, kv_heads, size, dtype=dtype)
    scattered = torch.randperm(700, generator=torch.Generator().manual_seed(3))
    segments = [
        Segment(0, 1, 33, slice(5, 38)),
        Segment(1, 1, 1, slice(90, 91)),
        Segment(2, 17, 17, slice(100, 117)),
        Segment(19, 150, 171, slice(200, 371)),
        Segment(169, 1, 40, scattered[:40]),
        Segment(170, 6, 21, scattered[40:61]),
    ]
    q = randn(176, heads, size, dtype=dtype, seed=4)
    got = ops.paged_attention(q, cache, segments, size**-0.5)
    close(got, reference.paged_attention(q, cache, segments, size**-0.5), 2)


def test_a_sequences_attention_does_not_depend_on_its_neighbours() -> None:
    cache = randn(256, 2, 3, 64, dtype=torch.bfloat16)
    q = randn(3, 9, 64, dtype=torch.bfloat16)
    segments = [Segment(at, 1, 50 + at, slice(60 * at, 60 * at + 50 + at)) for at in range(3)]
    together = ops.paged_attention(q, cache, segments, 0.125)
    for at, segment in enumerate(segments):
        alone = ops.paged_attention(q[at : at + 1], cache, [Segment(0, 1, 50 + at, segment.slots)], 0.125)
        assert torch.equal(together[at : at + 1], alone)


def test_unused_slots_may_hold_anything() -> None:
    """Memory of the cache is not cleared: what stands beyond a context must not reach its result."""
    cache = randn(64, 2, 2, 8, dtype=torch.float32)
    q = randn(4, 4, 8, dtype=torch.float32)
    segments = [Segment(0, 4, 20, slice(16, 36))]
    clean = ops.paged_attention(q, cache, segments, 1.0)
    cache[:16], cache[36:] = float("nan"), float("inf")
    assert torch.equal(ops.paged_attention(q, cache, segments, 1.0), clean)
