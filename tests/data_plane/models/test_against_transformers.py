"""Logits of tiny random models, in float32, against `transformers`: whole, and in chunks over scattered blocks."""

import pytest
import torch
from torch import Tensor

from data_plane.models import registry
from kernels.ops import Segment
from tests.data_plane.models.tiny import FAMILIES, Tiny, make_tiny

TOLERANCE = 2e-5
"""Relative and absolute, in float32 on logits of some tens; the order of sums differs."""


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return make_tiny(request.param)


def tokens_of(count: int) -> list[int]:
    return torch.randint(0, 101, (count,), generator=torch.Generator().manual_seed(5)).tolist()


def logits_in_chunks(tiny: Tiny, tokens: list[int], slots: Tensor, sizes: list[int]) -> Tensor:
    """Logits [tokens, vocabulary]; keys and values go to `slots`, the tokens come in chunks of `sizes`."""
    config = tiny.config
    model = registry.build(config, tiny.tensors, config.max_position_embeddings)
    # what is not written must not be read
    caches = [
        torch.full((400, 2, config.num_kv_heads, config.head_dim), float("nan")) for _ in range(config.num_layers)
    ]
    parts: list[Tensor] = []
    start = 0
    for size in sizes:
        stop = start + size
        segment = Segment(0, size, stop, slots[:stop])
        with torch.inference_mode():
            hidden = model.forward(
                torch.tensor(tokens[start:stop]), torch.arange(start, stop), slots[start:stop], [segment], caches
            )
            parts.append(model.logits(hidden))
        start = stop
    return torch.cat(parts)


@pytest.mark.parametrize("sizes", [[150], [64, 64, 22], [1] * 9 + [130, 1, 10]], ids=["whole", "chunks", "uneven"])
def test_logits(tiny: Tiny, sizes: list[int]) -> None:
    tokens = tokens_of(150)
    slots = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:150]
    got = logits_in_chunks(tiny, tokens, slots, sizes)
    expected = tiny.hf_logits(tokens)
    assert expected.abs().max() > 1, "logits near zero would prove nothing"
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())


def test_families_differ() -> None:
    """The variants are told apart by the test: their logits are not those of the plain model."""
    tokens = tokens_of(40)
    plain = make_tiny("llama").hf_logits(tokens)
    for family in ("llama-linear", "llama-llama3", "qwen3"):
        assert not torch.allclose(make_tiny(family).hf_logits(tokens), plain, atol=1e-2)
