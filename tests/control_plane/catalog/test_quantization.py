"""The words, and what `auto` means: pure."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.catalog.quantization import (
    RUNS_ON,
    WORDS,
    Candidate,
    choose,
    is_word,
    stored_name,
    unknown,
    word,
    words,
)

PLAIN = Candidate("none", "p", speed={"score": 100.0})
INT8 = Candidate("int8", "8", {"perplexity_ratio": 1.004}, {"decode_1_tps": 200.0, "score": 180.0})
INT4 = Candidate("int4", "4", {"perplexity_ratio": 1.05}, {"decode_1_tps": 220.0, "score": 150.0})
FP8 = Candidate("fp8", "f", {"perplexity_ratio": 1.001})


def test_bf16_is_stored_as_none_and_the_others_as_themselves() -> None:
    assert [stored_name(each) for each in WORDS] == ["auto", "none", "int8", "int4", "fp8"]
    assert [word(stored_name(each)) for each in WORDS] == list(WORDS)
    assert words(["int4", "none", "int8"]) == "bf16, int8, int4"


@given(st.text(max_size=60))
def test_any_other_word_is_refused_with_those_there_are(text: str) -> None:
    if is_word(text):
        return
    with pytest.raises(ValueError, match="bf16, int8, int4, fp8, or auto"):
        stored_name(text)
    assert unknown(text).isprintable()


def test_auto_is_the_fastest_that_is_good_enough() -> None:
    assert choose([PLAIN, INT8, INT4], ["cpu"]) == INT8, "by the score, not by any one case"
    forced = Candidate("int8", "8", {"perplexity_ratio": 1.03}, {"score": 999.0})
    assert choose([PLAIN, forced, INT4], ["cpu"]) == INT4
    assert choose([PLAIN, forced], ["cpu"]) == PLAIN
    assert choose([forced], ["cpu"]) == forced, "better than nothing"


def test_what_was_not_measured_is_plain_and_what_does_not_run_there_is_nothing() -> None:
    unmeasured, plain = Candidate("int8", "8"), Candidate("none", "p")
    assert choose([unmeasured, plain], ["cpu"]) == plain
    assert choose([unmeasured], ["cpu"]) == unmeasured
    assert choose([Candidate("int8", "8", speed={"score": math.nan}), plain], ["cpu"]) == plain
    assert choose([INT8, FP8], ["cuda"]) == FP8
    assert choose([INT8], ["cuda"]) is None and choose([], ["cpu"]) is None
    assert choose([INT8], ["cuda", "cpu"]) == INT8, "the next kind"
    assert choose([PLAIN, INT8], ["cuda", "cpu"]) == PLAIN


@given(st.lists(st.sampled_from([PLAIN, INT8, INT4, FP8]), unique_by=lambda c: c.quantization))
def test_the_order_of_the_rows_decides_nothing(candidates: list[Candidate]) -> None:
    for kind in ("cpu", "cuda"):
        chosen = choose(candidates, [kind])
        assert choose(list(reversed(candidates)), [kind]) == chosen
        assert chosen is None or kind in RUNS_ON[chosen.quantization]
