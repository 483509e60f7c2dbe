"""Estimates of memory against what real runners took, and what is learned from them."""

from typing import Any

import pytest

from control_plane.endpoints.fit import KnownDevice, changes, too_large
from control_plane.endpoints.measured import FORGET, correct
from control_plane.endpoints.memory import GIB, MIB, sharded
from control_plane.endpoints.specs import RevisionSpec

BYTES = {"int4": 96_548_581, "int8": 136_977_000, "none": 270_621_100}
MEASURED = [
    # SmolLM2 135M in the native decoder: contexts of `context` tokens, all sequences full; MiB resident when it became
    # ready beside the KV cache, and at the peak
    ("int4", 512, 8, 209, 298),
    ("int8", 512, 8, 248, 336),
    ("none", 512, 8, 374, 462),
    ("int4", 2048, 4, 209, 389),
    ("int8", 2048, 4, 248, 428),
    ("none", 2048, 4, 374, 553),
    ("int4", 8192, 1, 210, 391),
    ("int8", 8192, 1, 248, 428),
    ("none", 8192, 1, 374, 554),
]


def spec_of(quantization: str = "none", context: int = 8192, concurrency: int = 32, **facts: Any) -> RevisionSpec:
    told: dict[str, Any] = {"dtype": "auto", "device": "auto", "target": None, "hidden_size": 576, **facts}
    return RevisionSpec(
        *("smollm2", "sha256:aa", BYTES[quantization], "bfloat16", 23_040, context, concurrency),
        quantization=quantization,
        intermediate_size=1536,
        vocab_size=49_152,
        **told,
    )


@pytest.mark.parametrize(("quantization", "context", "concurrency", "ready_mib", "peak_mib"), MEASURED)
def test_within_a_tenth_at_first_and_a_twentieth_after_one_start(
    quantization: str, context: int, concurrency: int, ready_mib: int, peak_mib: int
) -> None:
    spec = spec_of(quantization, context, concurrency)
    guess = spec.estimate("cpu")
    assert guess.total_bytes == pytest.approx(peak_mib * MIB, rel=0.10)
    # one start, of another context: what it took beside its KV cache corrects this one
    excess = correct(None, ready_mib * MIB - spec_of(quantization, 64, 1).estimate("cpu").fixed_bytes, has_ended=False)
    assert spec.estimate("cpu", excess).total_bytes == pytest.approx(peak_mib * MIB, rel=0.05)


def test_a_correction_rises_at_once_and_falls_slowly_by_whole_lives_only() -> None:
    assert correct(None, -7 * MIB, has_ended=False) == -7 * MIB
    assert correct(10 * MIB, 12 * MIB, has_ended=False) == 12 * MIB
    assert correct(12 * MIB, 4 * MIB, has_ended=False) == 12 * MIB
    assert correct(12 * MIB, 4 * MIB, has_ended=True) == 12 * MIB - 8 * MIB // FORGET


def box(memory: int, count: int = 1) -> list[KnownDevice]:
    return [KnownDevice(f"box{at}", "cpu", "cpu", memory) for at in range(count)]


def test_what_does_not_fit_is_told_with_three_computed_ways() -> None:
    spec = spec_of()
    assert too_large(spec, box(GIB)) is None
    said = too_large(spec, box(600 * MIB), {"int8": BYTES["int8"]})
    assert said is not None
    for part in ("8192 tokens", "180 MiB", "480 MiB for replicas", "--quant int8 (", "--context ", "sharding over 2"):
        assert part in said, said
    quant, context, sharding = changes(spec, "cpu", [480 * MIB], {"int8": BYTES["int8"]})
    assert quant.does and quant.needs_bytes == spec_of("int8", concurrency=1).estimate("cpu").total_bytes
    most = int(context.says.split()[1])
    assert spec_of(context=most, concurrency=1).estimate("cpu").total_bytes <= 480 * MIB
    assert spec_of(context=most + 1, concurrency=1).estimate("cpu").total_bytes > 480 * MIB
    assert sharding.does and sharding.needs_bytes <= 480 * MIB
    assert too_large(spec_of(context=most), box(600 * MIB)) is None
    assert too_large(spec, box(600 * MIB), excess_bytes=-200 * MIB) is None, "what was measured counts"


def test_where_nothing_would_do_that_is_said() -> None:
    said = too_large(spec_of(), box(100 * MIB))
    assert said is not None and "Deploy a smaller model" in said and "would still take" in said
    assert too_large(spec_of(), []) is None, "no node is known yet"


def test_a_small_device_gets_less_cache_and_never_less_than_one_context() -> None:
    guess = spec_of().estimate("cpu")
    assert guess.kv_cache_bytes == GIB, "capped"
    cut = guess.within(guess.least_bytes + 5)
    assert cut.total_bytes == guess.least_bytes + 5
    assert guess.within(guess.least_bytes - 1) is guess, "less would not run one request"
    assert guess.within(2 * GIB) is guess


def test_shares_of_a_sharded_model_add_up() -> None:
    size = spec_of().size
    half = sharded(size, 2)
    assert 2 * half.artifact_bytes >= size.artifact_bytes and 2 * half.kv_bytes_per_token >= size.kv_bytes_per_token
