"""The sampler: distributions, seeds, filters, penalties, and rows that do not see each other."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_plane.engine.batch import Row
from data_plane.engine.sampling import SamplingParams
from data_plane.execution.noise import uniform
from data_plane.execution.sampler import TOP_WIDTH, Choice, Place
from data_plane.execution.sampler import sample as sample_places

BASE = SamplingParams(max_tokens=1, temperature=1.0)
GREEDY = replace(BASE, temperature=0.0)


def row(params: SamplingParams = BASE, *, seed: int = 0, position: int = 9, **more: object) -> Row:
    return Row("r", [0], position - 1, [0], params, seed, True, **more)  # type: ignore[arg-type]


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Choice]:
    """Each row's next token."""
    return sample_places(logits, [Place(row, row.stop) for row in rows])


def draw(logits: Tensor, params: SamplingParams, count: int) -> Counter[int | None]:
    """Tokens of `count` positions of one seed."""
    rows = [row(params, position=position + 1) for position in range(count)]
    return Counter(choice.token_id for choice in sample(logits.expand(count, -1), rows))


def logits_of(size: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def test_noise_is_uniform_and_depends_on_both_numbers() -> None:
    values = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert all(0 <= value < 1 for value in values)
    assert len(set(values)) == len(values)
    tenths = Counter(int(value * 10) for value in values)
    assert all(850 < count < 1150 for count in tenths.values())
    # neighbours in seed and in position are unrelated
    for step in (1, 100):
        pairs = list(zip(values, values[step:], strict=False))
        assert abs(sum((a - 0.5) * (b - 0.5) for a, b in pairs) / len(pairs) * 12) < 0.04
    assert 0 <= uniform(-5, 0) < 1
    assert uniform(2**64 + 7, 3) == uniform(7, 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_follow_the_distribution(temperature: float) -> None:
    logits = logits_of(12)
    count = 20_000
    got = draw(logits, replace(BASE, temperature=temperature), count)
    expected = torch.softmax(logits / temperature, -1).tolist()
    chi_square = sum((got[token] - count * p) ** 2 / (count * p) for token, p in enumerate(expected))
    assert chi_square < 31.3, "99.9 % of true samples of 11 degrees of freedom stay below"


def test_greedy_takes_the_largest_and_the_same_whatever_the_seed() -> None:
    logits = logits_of(1000)
    choices = sample(logits.expand(3, -1), [row(GREEDY, seed=seed) for seed in range(3)])
    assert {choice.token_id for choice in choices} == {int(logits.argmax())}


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    size = 3000
    logits = torch.stack([logits_of(size, seed) for seed in range(8)])
    params = [
        BASE,
        replace(BASE, top_p=0.9),
        replace(BASE, top_p=0.999, temperature=3.0),
        replace(BASE, top_k=5),
        replace(BASE, top_k=700, top_p=0.8),
        replace(BASE, min_p=0.1, logprobs=3),
        replace(GREEDY, logprobs=1),
        replace(BASE, presence_penalty=1.0),
    ]
    rows = [row(each, seed=at, position=50 + at, output_counts={3: 2}) for at, each in enumerate(params)]
    together = sample(logits, rows)
    backwards = sample(logits.flip(0), rows[::-1])[::-1]
    alone = [sample(logits[at : at + 1], rows[at : at + 1])[0] for at in range(8)]
    assert together == alone == backwards


def test_seed_and_position_decide() -> None:
    logits = logits_of(5000, scale=0.5).expand(6, -1)
    same = sample(logits, [row(seed=3, position=4)] * 6)
    assert len({choice.token_id for choice in same}) == 1
    assert len({c.token_id for c in sample(logits, [row(seed=seed) for seed in range(6)])}) > 3
    assert len({c.token_id for c in sample(logits, [row(position=at + 1) for at in range(6)])}) > 3


def test_top_k() -> None:
    logits = logits_of(50)
    best = set(logits.topk(3).indices.tolist())
    assert set(draw(logits, replace(BASE, top_k=3), 500)) == best
    assert set(draw(logits, replace(BASE, top_k=1, temperature=5.0), 50)) == {int(logits.argmax())}
    assert len(draw(logits, replace(BASE, top_k=50, temperature=9.0), 2000)) == 50


@pytest.mark.parametrize(("size", "top_p"), [(40, 0.7), (4 * TOP_WIDTH, 0.97)], ids=["few", "more than the width"])
def test_top_p_keeps_the_smallest_set_that_reaches_it(size: int, top_p: float) -> None:
    logits = logits_of(size, scale=0.6)
    ranked = torch.softmax(logits, -1).sort(descending=True)
    kept = int((ranked.values.cumsum(0) < top_p).sum()) + 1
    nucleus = set(ranked.indices[:kept].tolist())
    got = set(draw(logits, replace(BASE, top_p=top_p), 6000))
    assert got <= nucleus
    assert len(got) > 0.8 * len(nucleus)
    assert (size > TOP_WIDTH) == (kept > TOP_WIDTH)


def test_top_p_counts_within_top_k() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # of the two kept by top_k the first holds 0.57
    assert set(draw(logits, replace(BASE, top_k=2, top_p=0.5), 300)) == {0}
    assert set(draw(logits, replace(BASE, top_k=2, top_p=0.6), 300)) == {0, 1}
    assert set(draw(logits, replace(BASE, top_p=0.0), 100)) == {0}


def test_min_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(logits, replace(BASE, min_p=0.5), 300)) == {0, 1}
    assert set(draw(logits, replace(BASE, min_p=1.0), 100)) == {0}


def test_a_tiny_temperature_is_nearly_greedy_and_does_not_overflow() -> None:
    logits = logits_of(100, scale=50)
    assert set(draw(logits, replace(BASE, temperature=1e-6), 20)) == {int(logits.argmax())}


def test_penalties_and_biases() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, -1.1])

    def best(**more: object) -> int | None:
        params: SamplingParams = more.pop("params")  # type: ignore[assignment]
        return sample(logits.unsqueeze(0), [row(params, **more)])[0].token_id  # type: ignore[arg-type]

    assert best(params=replace(GREEDY, presence_penalty=0.2), output_counts={0: 1}) == 1
    assert best(params=replace(GREEDY, presence_penalty=0.05), output_counts={0: 3}) == 0
    assert best(params=replace(GREEDY, frequency_penalty=0.05), output_counts={0: 3}) == 1
    assert best(params=replace(GREEDY, repetition_penalty=1.2), output_counts={}, prompt_ids=frozenset({0})) == 1
    assert best(params=replace(GREEDY, repetition_penalty=9.0), output_counts={0: 1, 1: 1}, prompt_ids=frozenset()) == 0
    # a negative logit is multiplied: repeating makes it less likely still
    only_negative = replace(GREEDY, repetition_penalty=1.2, logit_bias={0: -100.0, 1: -100.0})
    assert best(params=only_negative, output_counts={2: 1}) == 3
    assert best(params=replace(GREEDY, logit_bias={3: 50.0})) == 3
    assert best(params=GREEDY, forbidden_ids=frozenset({0, 1})) == 2


def test_logprobs_are_the_models_own() -> None:
    logits = logits_of(300).expand(3, -1)
    expected = torch.log_softmax(logits[0].double(), -1)
    rows = [
        row(replace(GREEDY, logprobs=4, logit_bias={7: 100.0})),
        row(replace(BASE, temperature=0.3, logprobs=0)),
        row(GREEDY),
    ]
    biased, own, none = sample(logits, rows)
    assert none.logprobs is None
    assert biased.logprobs is not None
    assert own.logprobs is not None
    assert (biased.token_id, own.logprobs.top) == (7, ())
    for choice in (biased, own):
        assert choice.logprobs is not None
        assert math.isclose(choice.logprobs.logprob, expected[choice.token_id or 0].item(), abs_tol=1e-5)
    top = expected.topk(4)
    assert [token for token, _ in biased.logprobs.top] == top.indices.tolist()
    assert [value for _, value in biased.logprobs.top] == pytest.approx(top.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_fail_their_row_alone(bad: float) -> None:
    logits = logits_of(64).repeat(4, 1)
    good = sample(logits, [row(seed=1)] * 4)
    logits[1, 5] = logits[3] = bad
    choices = sample(logits, [row(seed=1), row(seed=1), row(seed=1), row(replace(GREEDY, top_p=0.5))])
    assert [choice.token_id for choice in choices] == [good[0].token_id, None, good[2].token_id, None]
    assert all("numerical_error" in (choices[at].error or "") for at in (1, 3))
