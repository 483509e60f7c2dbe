"""The gate's figures, from values whose answers are known."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.weights.quality import Position, QualityError, Record, compare, divergence, refusal


def position(probabilities: Sequence[float], token: int = 0, top: int = 20) -> Position:
    """Of a vocabulary as long as `probabilities`, of which the `top` most likely are named."""
    logs = [math.log(p) for p in probabilities]
    ranked = sorted(range(len(logs)), key=lambda i: -logs[i])[:top]
    return Position(token, logs[token], {i: logs[i] for i in ranked})


def record(positions: Sequence[Position], answers: Sequence[Sequence[int]]) -> Record:
    return Record([positions], answers)


def test_equal_weights_lose_nothing() -> None:
    same = record([position([0.5, 0.25, 0.25]), position([0.1, 0.9], 1)], [[1, 2, 3]])
    assert compare(same, same) == {
        "perplexity_ratio": 1.0,
        "mean_kl": 0.0,
        "greedy_agreement": 1.0,
        "perplexity": pytest.approx(math.sqrt(2 / 0.9), rel=1e-4),
        "reference_perplexity": pytest.approx(math.sqrt(2 / 0.9), rel=1e-4),
    }


def test_figures() -> None:
    ours = record([position([0.5, 0.5]), position([0.5, 0.5])], [[1, 2, 3, 4], [7, 8]])
    theirs = record([position([0.25, 0.75]), position([0.5, 0.5])], [[1, 2, 9, 4], [7, 8]])
    figures = compare(ours, theirs)
    assert figures["perplexity_ratio"] == pytest.approx(math.sqrt(2), rel=1e-4)
    assert figures["reference_perplexity"] == pytest.approx(2, rel=1e-4)
    assert figures["mean_kl"] == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2, rel=1e-4)
    # two of four tokens before the first that differs, whatever comes after; and both of two
    assert figures["greedy_agreement"] == 0.75


def test_answers_of_other_lengths_agree_as_far_as_they_go() -> None:
    one, other = record([position([1.0])], [[1, 2, 3, 4]]), record([position([1.0])], [[1, 2]])
    assert compare(one, other)["greedy_agreement"] == 0.5
    nothing = record([position([1.0])], [[]])
    assert compare(nothing, nothing)["greedy_agreement"] == 1.0


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    ours = record([position([0.5, 0.5])], [[1]])
    with pytest.raises(QualityError, match="not numbers"):
        compare(ours, record([Position(0, value, {})], [[1]]))


probabilities = st.lists(st.floats(0.001, 1), min_size=30, max_size=30).map(lambda ps: [p / sum(ps) for p in ps])


@given(p=probabilities, q=probabilities)
def test_the_bucket_makes_a_lower_bound(p: list[float], q: list[float]) -> None:
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    seen = divergence(position(p, top=5), position(q, top=5))
    assert 0 <= seen <= whole + 1e-9
    assert divergence(position(p, top=30), position(q, top=30)) == pytest.approx(whole, abs=1e-9)


def test_a_refusal_names_the_figures() -> None:
    figures = {"perplexity_ratio": 1.0213, "mean_kl": 0.01234, "greedy_agreement": 0.21}
    sentence = refusal("int8", figures)
    assert sentence is not None
    for part in ("int8", "2.1%", "2% allowed", "0.0123 nats", "21%", "--force"):
        assert part in sentence
    assert refusal("int4", figures) is None
    assert refusal("int8", figures | {"perplexity_ratio": 1.02}) is None
