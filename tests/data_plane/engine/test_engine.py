"""The engine by single cases: budgets, preemption, ends, failures, refusals."""

from dataclasses import replace

import pytest

from data_plane.engine.batch import Batch, Sampled
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from tests.data_plane.engine.memory_executor import MemoryExecutor
from tests.fakes.executor import FakeExecutor, fake_token


def config(**changes: int) -> EngineConfig:
    values = {"max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 16, "block_size": 4, "num_blocks": 64}
    values |= changes
    return replace(EngineConfig(max_model_len=64, eos_token_ids=frozenset({2})), **values)


def run(engine: Engine) -> list[Output]:
    outputs: list[Output] = []
    while engine.has_work:
        outputs.extend(engine.step())
        engine.check()
    return outputs


def test_tokens_are_those_of_seed_and_position() -> None:
    engine = Engine(config(), FakeExecutor())
    engine.add("a", [5, 6, 7], SamplingParams(max_tokens=4, seed=9))
    outputs = run(engine)
    assert [output.token_id for output in outputs] == [fake_token(9, position) for position in range(3, 7)]
    assert [output.finish_reason for output in outputs] == [None, None, None, "length"]
    assert all(output.cached_tokens == 0 for output in outputs)


def test_decodes_go_first_and_prefill_fills_the_budget() -> None:
    executor = FakeExecutor()
    engine = Engine(config(), executor, clock=lambda: 0.0)
    engine.add("short", [1], SamplingParams(max_tokens=20, seed=1, ignore_eos=True))
    engine.step()
    engine.add("long", list(range(40)), SamplingParams(max_tokens=1, seed=1))
    engine.step()
    engine.step()
    rows = [(row.request_id, row.start, len(row.tokens)) for row in executor.batches[1].rows]
    assert rows == [("short", 1, 1), ("long", 0, 15)]
    assert [(row.request_id, row.start) for row in executor.batches[2].rows] == [("short", 2), ("long", 15)]
    assert not executor.batches[2].rows[1].wants_token
    assert engine.stats().last_batch_tokens == 16


def test_a_full_pool_preempts_the_youngest_and_its_tokens_stay_the_same() -> None:
    def tokens(num_blocks: int) -> tuple[dict[str, list[int | None]], int]:
        engine = Engine(config(num_blocks=num_blocks), MemoryExecutor(num_blocks, 4))
        for name in ("a", "b", "c"):
            engine.add(name, [len(name), 3, ord(name)], SamplingParams(max_tokens=30, seed=4, ignore_eos=True))
        got: dict[str, list[int | None]] = {"a": [], "b": [], "c": []}
        for output in run(engine):
            got[output.request_id].append(output.token_id)
        return got, engine.stats().preemptions

    roomy, none = tokens(64)
    tight, some = tokens(12)
    assert none == 0
    assert some > 0
    assert tight == roomy
    assert all(len(got) == 30 for got in tight.values())


@pytest.mark.parametrize("prompt_length", [1, 5, 40])
def test_max_tokens_zero_gives_the_prompts_logprobs_and_no_token(prompt_length: int) -> None:
    engine = Engine(config(), FakeExecutor())
    engine.add("a", list(range(10, 10 + prompt_length)), SamplingParams(max_tokens=0, prompt_logprobs=2))
    outputs = run(engine)
    assert [(output.token_id, output.finish_reason) for output in outputs] == [(None, "length")]
    entries = outputs[0].prompt_logprobs
    assert entries is not None
    assert entries[0] is None
    assert [entry.token_id for entry in entries if entry] == list(range(11, 10 + prompt_length))
    assert all(len(entry.top) == 2 for entry in entries if entry)


def test_eos_and_stop_tokens_end_with_stop_and_are_reported() -> None:
    def end(params: SamplingParams) -> tuple[int, str | None]:
        engine = Engine(config(), FakeExecutor(choose=lambda row, position: [2, 9, 8][position % 3]))
        engine.add("a", [1, 1, 1, 1], params)
        outputs = run(engine)
        assert outputs[-1].token_id is not None
        return len(outputs), outputs[-1].finish_reason

    assert end(SamplingParams(max_tokens=9)) == (3, "stop")
    assert end(SamplingParams(max_tokens=9, ignore_eos=True)) == (9, "length")
    assert end(SamplingParams(max_tokens=9, stop_token_ids=frozenset({8}))) == (2, "stop")
    assert end(SamplingParams(max_tokens=9, stop_token_ids=frozenset({8}), ignore_eos=True, min_tokens=4)) == (
        5,
        "stop",
    )


def test_the_context_ends_an_answer() -> None:
    engine = Engine(config(max_model_len=8), FakeExecutor())
    engine.add("a", [1] * 6, SamplingParams(max_tokens=100, seed=1))
    assert [output.finish_reason for output in run(engine)] == [None, "length"]


def test_abort_waiting_running_unknown_and_twice() -> None:
    engine = Engine(config(max_num_seqs=1), FakeExecutor())
    engine.add("running", [1, 2], SamplingParams(max_tokens=50, seed=1, ignore_eos=True))
    engine.add("waiting", [1, 2], SamplingParams(max_tokens=50, seed=1))
    engine.step()
    for name in ("waiting", "running", "unknown", "running"):
        engine.abort(name)
        engine.check()
    assert engine.stats().num_free_blocks == 64
    assert [(o.request_id, o.finish_reason) for o in run(engine)] == [("waiting", "abort"), ("running", "abort")]
    engine.add("running", [1], SamplingParams(max_tokens=1))
    assert run(engine)[-1].finish_reason == "length"


def test_one_row_that_is_not_a_number_fails_alone() -> None:
    engine = Engine(config(), FakeExecutor(broken_ids={"bad"}))
    for name in ("good", "bad", "fine"):
        engine.add(name, [1, 2, 3], SamplingParams(max_tokens=3, seed=1, ignore_eos=True))
    ends = {output.request_id: output for output in run(engine) if output.finish_reason}
    assert {name: end.finish_reason for name, end in ends.items()} == {
        "good": "length",
        "bad": "error",
        "fine": "length",
    }
    assert "numerical_error" in (ends["bad"].error or "")


def test_an_executor_that_raises_fails_its_batch_and_the_engine_goes_on() -> None:
    def fail(batch: Batch) -> Exception | None:
        return RuntimeError("no memory") if any(row.request_id == "poison" for row in batch.rows) else None

    engine = Engine(config(max_num_seqs=2), FakeExecutor(fail_on=fail))
    for name in ("first", "poison", "queued"):
        engine.add(name, [1, 2], SamplingParams(max_tokens=2, seed=1, ignore_eos=True))
    with_failure = {output.request_id: output for output in run(engine) if output.finish_reason}
    assert "RuntimeError: no memory" in (with_failure["poison"].error or "")
    assert with_failure["first"].finish_reason == "error"
    assert with_failure["queued"].finish_reason == "length"
    assert engine.stats().failed_steps == 1
    assert engine.stats().num_free_blocks == 64


def test_an_executor_that_loses_a_row_fails_its_batch() -> None:
    class Forgetful(FakeExecutor):
        def run(self, batch: Batch) -> list[Sampled]:
            return super().run(batch)[1:]

    engine = Engine(config(), Forgetful())
    engine.add("a", [1], SamplingParams(max_tokens=2))
    assert "0 results for 1 rows" in (run(engine)[0].error or "")


@pytest.mark.parametrize(
    ("prompt", "params", "sentence"),
    [
        ([], SamplingParams(max_tokens=1), "no tokens"),
        ([1] * 65, SamplingParams(max_tokens=1), "65 tokens and the context is 64"),
        ([1] * 64, SamplingParams(max_tokens=1), "64 tokens and the context is 64"),
        ([1], SamplingParams(max_tokens=-1), "negative"),
        ([1000], SamplingParams(max_tokens=1), "1000 is not in the vocabulary of 100"),
        ([1], SamplingParams(max_tokens=1, logit_bias={100: 1.0}), "100 is not in the vocabulary"),
        ([1] * 30, SamplingParams(max_tokens=30), "need 15 KV blocks of 4 tokens and there are 10"),
    ],
)
def test_what_can_never_be_served_is_refused_with_numbers(
    prompt: list[int], params: SamplingParams, sentence: str
) -> None:
    engine = Engine(config(num_blocks=10, vocab_size=100), FakeExecutor())
    with pytest.raises(ValueError, match=sentence):
        engine.add("a", prompt, params)
    assert not engine.has_work


def test_a_name_in_use_is_refused() -> None:
    engine = Engine(config(), FakeExecutor())
    engine.add("a", [1], SamplingParams(max_tokens=1))
    with pytest.raises(ValueError, match="already"):
        engine.add("a", [1], SamplingParams(max_tokens=1))


def test_a_budget_below_the_number_of_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        config(max_num_batched_tokens=3)


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_what_another_engine_began_goes_on_as_if_begun_here(cut: int) -> None:
    """Tokens, penalties' counts and limits; what was made counts as made, not as prompt."""
    prompt = [5, 6, 7, 8, 9]
    params = SamplingParams(max_tokens=12, seed=9, frequency_penalty=0.5, repetition_penalty=1.1, min_tokens=11)
    rows: list[dict[int, tuple[dict[int, int], frozenset[int], frozenset[int]]]] = [{}, {}]
    made: list[list[Output]] = []
    for which, known in enumerate((0, cut)):
        executor = FakeExecutor()
        engine = Engine(config(), executor)
        earlier = [output.token_id or 0 for output in made[0][:known]] if made else []
        if known:
            engine.add("before", prompt, replace(params, max_tokens=1))
            run(engine)
            executor.batches.clear()
        engine.add("a", prompt, params, made=earlier)
        seen: list[Output] = []
        while engine.has_work:
            seen += engine.step()
            row = executor.batches[-1].rows[-1]
            rows[which][row.stop] = (dict(row.output_counts or {}), row.prompt_ids, row.forbidden_ids)
        made.append(seen)
    assert [one.token_id for one in made[1]] == [one.token_id for one in made[0][cut:]]
    assert made[1][-1].finish_reason == "length" and all(one.cached_tokens <= len(prompt) for one in made[1])
    assert rows[1] == {stop: seen for stop, seen in rows[0].items() if stop >= len(prompt) + cut}


def test_what_has_ended_already_is_refused() -> None:
    engine = Engine(config(vocab_size=100), FakeExecutor(vocab_size=100))
    with pytest.raises(ValueError, match="3 tokens have been generated and 3 were wanted"):
        engine.add("a", [1], SamplingParams(max_tokens=3), made=[4, 5, 6])
    with pytest.raises(ValueError, match="Token id 100"):
        engine.add("a", [1], SamplingParams(max_tokens=3), made=[100])
    assert not engine.has_work
