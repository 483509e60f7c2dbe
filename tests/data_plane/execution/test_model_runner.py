"""The runner under the engine, on a tiny random Llama in float32: neither batching nor chunking changes a token."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from data_plane.engine.batch import Batch, Row, Sampled
from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from data_plane.execution.loaded import Loaded, LoadOptions
from data_plane.execution.loading import build, resolve_dtype
from data_plane.execution.warm_up import warm_up
from tests.data_plane.models.tiny import Tiny, make_tiny

LOGPROB_TOLERANCE = 1e-4
"""float32; sums of other orders, of logits of some tens."""


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny("llama")


def load(tiny: Tiny, *, budget: int = 512, blocks: int = 200, seqs: int = 16) -> Loaded:
    per_token = tiny.config.kv_elements_per_token * 4
    return build(
        tiny.config,
        tiny.tensors,
        LoadOptions(
            dtype="float32",
            max_num_seqs=seqs,
            max_num_batched_tokens=budget,
            kv_cache_bytes=blocks * 16 * per_token,
        ),
    )


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, 101, (7 + 13 * at,), generator=generator).tolist() for at in range(count)]


def answers(loaded: Loaded, asked: Sequence[tuple[list[int], SamplingParams]]) -> list[list[Output]]:
    """All at once; each request's outputs."""
    engine = Engine(loaded.config, loaded.executor)
    for at, (prompt, params) in enumerate(asked):
        engine.add(str(at), prompt, params)
    got: list[list[Output]] = [[] for _ in asked]
    while engine.has_work:
        for output in engine.step():
            got[int(output.request_id)].append(output)
        engine.check()
    return got


def tokens(outputs: Sequence[Output]) -> list[int | None]:
    return [output.token_id for output in outputs]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_sixteen_together_get_the_tokens_of_each_alone(tiny: Tiny, temperature: float) -> None:
    params = SamplingParams(max_tokens=20, temperature=temperature, seed=5, top_p=0.95, ignore_eos=True)
    asked = [(prompt, params) for prompt in prompts(16)]
    together = answers(load(tiny), asked)
    for at, each in enumerate(asked):
        assert tokens(answers(load(tiny), [each])[0]) == tokens(together[at])


def test_greedy_tokens_are_those_of_transformers(tiny: Tiny) -> None:
    prompt = prompts(3)[2]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    got = [token or 0 for token in tokens(answers(load(tiny), [(prompt, params)])[0])]
    best = tiny.hf_logits(prompt + got)[len(prompt) - 1 : -1].argmax(-1)
    assert got == best.tolist()


def test_chunks_give_the_tokens_of_a_whole_prefill(tiny: Tiny) -> None:
    params = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, logprobs=2)
    asked = [(prompt, params) for prompt in prompts(12)]
    whole = answers(load(tiny, budget=4096), asked)
    chunked = answers(load(tiny, budget=17), asked)
    assert [tokens(each) for each in chunked] == [tokens(each) for each in whole]


def test_preemption_and_scattered_blocks_change_no_token(tiny: Tiny) -> None:
    params = SamplingParams(max_tokens=60, temperature=0.7, seed=2, ignore_eos=True)
    asked = [(prompt, params) for prompt in prompts(10)]
    roomy = load(tiny)
    tight = load(tiny, blocks=24, seqs=6, budget=40)
    engine = Engine(tight.config, tight.executor)
    for at, (prompt, each) in enumerate(asked):
        engine.add(str(at), prompt, each)
    got: list[list[int | None]] = [[] for _ in asked]
    scattered = 0
    while engine.has_work:
        for output in engine.step():
            got[int(output.request_id)].append(output.token_id)
        held = [request.blocks for request in engine.scheduler.running]
        scattered += any(blocks != list(range(blocks[0], blocks[0] + len(blocks))) for blocks in held)
    assert got == [tokens(each) for each in answers(roomy, asked)]
    assert engine.stats().preemptions > 0
    assert scattered > 0


@pytest.mark.parametrize("budget", [16, 512])
def test_prompt_logprobs_whole_and_in_chunks(tiny: Tiny, budget: int) -> None:
    prompt = prompts(10)[9]
    params = SamplingParams(max_tokens=0, prompt_logprobs=3)
    outputs = answers(load(tiny, budget=budget), [(prompt, params)])[0]
    assert [(output.token_id, output.finish_reason) for output in outputs] == [(None, "length")]
    entries = list(outputs[0].prompt_logprobs or ())
    expected = torch.log_softmax(tiny.hf_logits(prompt), -1)
    assert len(entries) == len(prompt)
    assert entries[0] is None
    for at, entry in enumerate(entries[1:], start=1):
        assert entry is not None
        assert entry.token_id == prompt[at]
        assert entry.logprob == pytest.approx(expected[at - 1, prompt[at]].item(), abs=LOGPROB_TOLERANCE)
        best = expected[at - 1].topk(3)
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=LOGPROB_TOLERANCE)


def test_prompt_logprobs_come_once_with_the_first_token(tiny: Tiny) -> None:
    params = SamplingParams(max_tokens=3, temperature=0.0, prompt_logprobs=0, logprobs=0, ignore_eos=True)
    outputs = answers(load(tiny), [(prompts(2)[1], params)])[0]
    assert [output.prompt_logprobs is not None for output in outputs] == [True, False, False]
    assert all(output.logprobs is not None and output.logprobs.logprob <= 0 for output in outputs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("right", [0, 2, 4])
def test_guesses_count_up_to_the_first_wrong_one(tiny: Tiny, temperature: float, right: int) -> None:
    params = SamplingParams(max_tokens=20, temperature=temperature, seed=3, ignore_eos=True, logprobs=2)
    prompt = prompts(3)[2]
    outputs = answers(load(tiny), [(prompt, params)])[0]
    expected = [output.token_id or 0 for output in outputs]
    guesses = [token if at < right else (token + 1) % 100 for at, token in enumerate(expected[1:5])]
    loaded = load(tiny)
    blocks = [9, 3, 5, 2]

    def run(tokens: list[int], start: int, num_drafts: int) -> Sampled:
        return loaded.executor.run(Batch((Row("r", tokens, start, blocks, params, 3, True, num_drafts),)))[0]

    first = run(prompt, 0, 0)
    assert [token.token_id for token in first.tokens] == expected[:1]
    second = run([expected[0], *guesses], len(prompt), 4)
    assert [token.token_id for token in second.tokens] == expected[1 : 2 + right]
    for token, output in zip(second.tokens, outputs[1:], strict=False):
        assert token.logprobs is not None and output.logprobs is not None
        assert token.logprobs.logprob == pytest.approx(output.logprobs.logprob, abs=LOGPROB_TOLERANCE)
    # what the wrong guesses left in the cache is written over
    accepted = [expected[0], *expected[1 : 1 + right]]
    third = run([expected[1 + right]], len(prompt) + len(accepted), 0)
    assert [token.token_id for token in third.tokens] == [expected[2 + right]]


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_guessing_and_caching_change_no_token(tiny: Tiny, temperature: float) -> None:
    """Each prompt twice, so that the second time it is cached; and an answer of two words, so that guesses hit."""
    biases = {10: 90.0, 11: 90.0}
    params = SamplingParams(max_tokens=50, temperature=temperature, seed=5, logit_bias=biases, ignore_eos=True)
    asked = [(prompt, params) for prompt in prompts(4)]
    plain = load(tiny)
    plain = replace(plain, config=replace(plain.config, num_speculative_tokens=0, enable_prefix_caching=False))
    expected = [tokens(each) for each in answers(plain, asked)]
    for blocks in (200, 12):
        loaded = load(tiny, blocks=blocks, seqs=3)
        engine = Engine(loaded.config, loaded.executor)
        got: list[list[int | None]] = [[] for _ in range(8)]
        for at in range(8):
            engine.add(str(at), *asked[at % 4])
        while engine.has_work:
            for output in engine.step():
                got[int(output.request_id)].append(output.token_id)
            engine.check()
        assert got == expected * 2
        stats = engine.stats()
        assert stats.prefix_cache_hits > 0 and stats.num_accepted_tokens > 0
        assert stats.preemptions > 0 or blocks == 200


def test_a_continuation_is_the_same_after_a_restart(tiny: Tiny) -> None:
    """Another replica that is given the prompt, the tokens so far and the seed goes on as the first would have."""
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=77, ignore_eos=True)
    prompt = prompts(1)[0]
    whole = [token or 0 for token in tokens(answers(load(tiny), [(prompt, params)])[0])]
    rest = answers(load(tiny), [(prompt + whole[:8], replace(params, max_tokens=12))])[0]
    assert tokens(rest) == whole[8:]


def test_weights_that_are_not_numbers_fail_the_request_and_not_the_engine(tiny: Tiny) -> None:
    broken = dict(tiny.tensors)
    broken["embed.weight"] = broken["embed.weight"].clone()
    broken["embed.weight"][50] = float("nan")
    loaded = load(Tiny(tiny.hf, tiny.config, broken))
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    bad, good = answers(loaded, [([4, 50, 6], params), ([4, 5, 6], params)])
    assert bad[0].finish_reason == "error"
    assert "numerical_error" in (bad[0].error or "")
    expected = answers(load(tiny), [([4, 5, 6], params)])[0]
    # 50 may be the answer itself, and then it fails too, at the next token
    assert tokens(good)[: len(expected)] == tokens(expected)
    echo = replace(params, max_tokens=0, prompt_logprobs=0)
    assert "numerical_error" in (answers(loaded, [([4, 50, 6], echo)])[0][0].error or "")


def test_the_cache_is_sized_by_bytes_and_the_context_by_the_cache(tiny: Tiny) -> None:
    assert load(tiny, blocks=200).config.num_blocks == 200
    assert load(tiny, blocks=200).config.max_model_len == 512
    small = load(tiny, blocks=3)
    assert (small.config.num_blocks, small.config.max_model_len) == (3, 48)
    assert load(tiny, blocks=10**9).config.num_blocks == 16 * 32, "no more than all sequences can use"
    with pytest.raises(ValueError, match="raise kv_cache_bytes"):
        build(tiny.config, tiny.tensors, LoadOptions(dtype="float32", kv_cache_bytes=100))
    warm_up(small.executor, small.config)


def test_dtypes_and_devices() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    assert resolve_dtype("auto", cpu) in (torch.bfloat16, torch.float32)
    assert resolve_dtype("float16", cpu) is torch.float16
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        resolve_dtype("int8", cpu)
    tiny = make_tiny("llama")
    with pytest.raises(ValueError, match="'meta' is not supported"):
        build(tiny.config, tiny.tensors, LoadOptions(device="meta"))
