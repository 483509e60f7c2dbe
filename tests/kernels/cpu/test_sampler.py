"""The decoder's sampler against its twin on torch, on logits that the decoder itself computed."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from data_plane.engine.batch import Batch, Row, Sampled
from data_plane.engine.outputs import TokenLogprobs
from data_plane.engine.sampling import SamplingParams
from data_plane.execution.logprobs import token_logprobs
from data_plane.execution.native_runner import NativeRunner
from data_plane.execution.noise import uniform
from data_plane.execution.sampler import Place, sample
from kernels.cpu.decoder import GREEDY, Decoder, Shape, StepInput, Weights, aligned, pack_plain
from tests.kernels.cpu.backends import Backends

LOGPROB_TOLERANCE = 1e-4
HIDDEN = 64
TOKENS = 24
"""Distinct rows of logits: one for each token that is fed in."""
BASE = SamplingParams(max_tokens=1, temperature=1.0)
PARAMS = {
    "greedy": replace(BASE, temperature=0.0),
    "greedy-logprobs": replace(BASE, temperature=0.0, logprobs=20),
    "plain": BASE,
    "cold": replace(BASE, temperature=0.3),
    "hot-logprobs": replace(BASE, temperature=1.9, logprobs=5),
    "top-k": replace(BASE, top_k=7),
    "top-k-1": replace(BASE, top_k=1, temperature=3.0),
    "top-p": replace(BASE, top_p=0.8),
    "top-p-wide": replace(BASE, top_p=0.9995, temperature=4.0),
    "top-p-0": replace(BASE, top_p=0.0),
    "top-k-and-p": replace(BASE, top_k=300, top_p=0.6, temperature=2.0),
    "min-p": replace(BASE, min_p=0.05),
    "all": replace(BASE, top_k=50, top_p=0.9, min_p=0.02, temperature=1.3, logprobs=2),
    "penalties": replace(BASE, presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.3, logprobs=3),
    "greedy-penalties": replace(BASE, temperature=0.0, presence_penalty=1.5, repetition_penalty=1.7, logprobs=0),
    "bias": replace(BASE, logit_bias={3: 4.5, 11: -100.0, 20: 5.0}, top_p=0.9),
    "greedy-bias": replace(BASE, temperature=0.0, logit_bias={17: 30.0}, logprobs=1),
}


def runner(backend: str, vocabulary: int, scale: float = 0.4) -> NativeRunner:
    """A model without layers: the logits after a token are its embedding's products."""
    numbers = np.random.default_rng(vocabulary)
    embed = numbers.standard_normal((vocabulary, HIDDEN), dtype=np.float32)
    head = numbers.standard_normal((vocabulary, HIDDEN), dtype=np.float32) * np.float32(scale)
    shape = Shape(HIDDEN, 2, 2, 32, HIDDEN, vocabulary, 1e-5, num_blocks=1, max_tokens=256, kv_dtype="float32")
    weights = Weights(
        pack_plain(embed, "float32", 1),
        pack_plain(head, "float32", 1),
        norm=np.ones(HIDDEN, dtype=np.float32),
        inv_freq=np.ones(16, dtype=np.float32),
        layers=[],
    )
    kv = aligned(shape.kv_elements_per_block * 4)
    decoder = Decoder(shape, weights, kv=kv, threads=2, backend=backend)
    return NativeRunner(decoder)


def logits_of(native: NativeRunner, tokens: Sequence[int]) -> Tensor:
    count = len(tokens)
    work = StepInput(tokens, [(0, count, 0, 0)], [0] * count, range(count), [GREEDY] * count)
    logits = native.decoder.step(work, wants_logits=True).logits
    assert logits is not None
    return torch.from_numpy(logits)


def row_of(params: SamplingParams, at: int, seed: int, vocabulary: int) -> Row:
    """One token in; with what it takes to be penalized."""
    dice = random.Random(seed)
    has_penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    counts = {dice.randrange(vocabulary): dice.randint(1, 4) for _ in range(30)} if has_penalties else None
    return Row(
        "r",
        [at % TOKENS],
        100 + at,
        [0] * 64,
        params,
        seed,
        True,
        forbidden_ids=frozenset({2, 5}) if at % 3 == 0 else frozenset(),
        output_counts=counts,
        prompt_ids=frozenset(dice.randrange(vocabulary) for _ in range(40)) if has_penalties else frozenset(),
    )


def close(got: TokenLogprobs | None, expected: TokenLogprobs | None) -> None:
    assert (got is None) == (expected is None)
    if got is None or expected is None:
        return
    assert got.token_id == expected.token_id
    assert abs(got.logprob - expected.logprob) <= LOGPROB_TOLERANCE
    for (token, value), (wanted, exact) in zip(got.top, expected.top, strict=True):
        assert token == wanted
        assert abs(value - exact) <= LOGPROB_TOLERANCE


@pytest.mark.parametrize(("name", "vocabulary"), [*((name, 1003) for name in PARAMS), ("greedy", 1024), ("all", 1024)])
def test_tokens_and_logprobs_are_the_twins(backends: Backends, backend: str, name: str, vocabulary: int) -> None:
    with backends.using(backend):
        native = runner(backend, vocabulary)
        rows = [row_of(PARAMS[name], at, 1000 + at, vocabulary) for at in range(72)]
        logits = logits_of(native, range(TOKENS))[[row.tokens[0] for row in rows]]
        results = native.run(Batch(tuple(rows)))
    expected = sample(logits, [Place(row, row.stop) for row in rows])
    tokens = [result.tokens[0].token_id for result in results]
    assert tokens == [choice.token_id for choice in expected]
    assert PARAMS[name].temperature == 0 or name in ("top-k-1", "top-p-0") or len(set(tokens)) > TOKENS
    for result, choice in zip(results, expected, strict=True):
        close(result.tokens[0].logprobs, choice.logprobs)


def test_prompt_logprobs(backends: Backends, backend: str) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    params = replace(BASE, temperature=0.0, prompt_logprobs=3)
    with backends.using(backend):
        native = runner(backend, 1003)
        row = Row("r", prompt[2:], 2, [0], params, 0, True, prompt_targets=prompt[4:], num_skipped_targets=1)
        (result,) = native.run(Batch((row,)))
        logits = logits_of(native, prompt)
    expected = token_logprobs(logits[3:11], prompt[4:], [3] * 8)
    assert len(result.prompt_logprobs) == len(expected) == 8
    for got, want in zip(result.prompt_logprobs, expected, strict=True):
        close(got, want)
    assert result.tokens[0].token_id == int(logits[-1].argmax())


def test_guesses_are_kept_up_to_the_first_wrong_one(backends: Backends, backend: str) -> None:
    """Each token is chosen as if it were alone: for its own position, from its own logits."""
    params = replace(BASE, temperature=0.8, logprobs=1)
    with backends.using(backend):
        native = runner(backend, 101)

        def alone(token: int, position: int) -> Sampled:
            return native.run(Batch((Row("r", [token], position - 1, [0] * 8, params, 7, True),)))[0]

        sequence = [9]
        for position in range(50, 55):
            sequence.append(alone(sequence[-1], position).tokens[0].token_id)
        right = Row("r", sequence[:5], 49, [0] * 8, params, 7, True, num_drafts=4)
        wrong = replace(right, tokens=[*sequence[:3], (sequence[3] + 1) % 101, sequence[4]])
        whole, cut = native.run(Batch((right, wrong)))
        assert [token.token_id for token in whole.tokens] == sequence[1:]
        assert [token.token_id for token in cut.tokens] == sequence[1:4]
        assert whole.tokens[:3] == cut.tokens
        assert whole.tokens[2] == alone(sequence[2], 52).tokens[0]


def test_the_point_of_a_seed_is_where_the_distribution_is_cut(backends: Backends, backend: str) -> None:
    with backends.using(backend):
        native = runner(backend, 37, scale=0.1)
        rows = [Row("r", [4], position, [0] * 20, BASE, 3, True) for position in range(200)]
        tokens = [result.tokens[0].token_id for result in native.run(Batch(tuple(rows)))]
        cumulative = torch.softmax(logits_of(native, [4])[0].double(), -1).cumsum(-1)
    for row, token in zip(rows, tokens, strict=True):
        point = uniform(3, row.stop)
        assert cumulative[token] > point - 1e-6
        assert token == 0 or cumulative[token - 1] <= point + 1e-6


@pytest.mark.parametrize("point", [0.0, 1.0 - 2.0**-53], ids=["first", "last"])
def test_a_forbidden_token_is_not_drawn_at_the_ends_of_the_distribution(
    backends: Backends, backend: str, point: float
) -> None:
    with backends.using(backend):
        native = runner(backend, 37)
        ends = [(0, float("-inf")), (36, float("-inf"))]
        choice = (1.0, 1.0, 0.0, 1.0, 0, -1, point, -1, 0, len(ends), 0, 0)
        for token in range(TOKENS):
            work = StepInput([token], [(0, 1, 0, 0)], [0], [0], [choice], ends)
            assert native.decoder.step(work).chosen[0] == (1 if point == 0 else 35)
