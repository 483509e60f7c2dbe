"""Guesses: where they come from, when they stop, and that they change how fast an answer comes and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from data_plane.engine.batch import Row
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine, EngineStats
from data_plane.engine.sampling import SamplingParams
from data_plane.engine.speculation import FIRST_PAUSE, FIRST_WIDTH, LONGEST_PAUSE, Guesser
from tests.data_plane.engine.memory_executor import MemoryExecutor
from tests.fakes.executor import FakeExecutor


def test_what_followed_last_time_is_guessed() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 7, 8, 9, 9, 1, 2, 3]
    guesser = Guesser(tokens)
    assert guesser.guess(8) == [7, 8, 9], "the later of the two places, as wide as it begins"
    assert guesser.guess(2) == [7, 8]
    assert guesser.guess(0) == []
    tokens += [4]
    assert guesser.guess(8) == [5, 6, 9]
    tokens += [0, 0]
    assert guesser.guess(8) == []


def test_a_text_that_repeats_itself_is_guessed_beyond_its_end() -> None:
    guesser = Guesser([5, 1, 2, 1, 2, 1, 2])
    guesser.learn(3, 3, 0.0, 7)
    assert guesser.guess(7) == [1, 2, 1, 2, 1, 2]
    guesser = Guesser([4, 4, 4, 4])
    assert guesser.guess(8) == [4] * FIRST_WIDTH


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_text_too_short_gives_no_guess(size: int) -> None:
    assert Guesser([1] * size).guess(8) == []


def test_the_width_follows_what_was_right() -> None:
    guesser = Guesser([4] * 20)
    guesser.learn(3, 3, 0.0, 8)
    assert len(guesser.guess(8)) == 6
    guesser.learn(6, 6, 0.0, 8)
    assert len(guesser.guess(20)) == 8
    guesser.learn(8, 2, 0.0, 8)
    assert len(guesser.guess(8)) == 3


def test_wrong_guesses_end_in_pauses_that_grow_and_right_ones_end_them() -> None:
    tokens = [4] * 10
    guesser = Guesser(tokens)
    tried = 0
    for _ in range(4000):
        if guesses := guesser.guess(8):
            tried += len(guesses)
            guesser.learn(len(guesses), 0, 0.1, 8)
        tokens.append(4)
    assert tried < 60, "less than one guess in sixty tokens where none is right"
    while not (guesses := guesser.guess(8)):
        tokens.append(4)
    for _ in range(6):
        guesser.learn(1, 1, 0.1, 8)
    assert len(guesser.guess(8)) == 8
    assert FIRST_PAUSE < LONGEST_PAUSE


def test_what_costs_more_than_it_gives_is_not_guessed() -> None:
    def tried(price: float) -> int:
        tokens = [4] * 10
        guesser = Guesser(tokens)
        count = 0
        for _ in range(300):
            if guesses := guesser.guess(4):
                count += 1
                guesser.learn(len(guesses), len(guesses) // 2, price, 4)
            tokens.append(4)
        return count

    # half of them are right
    assert tried(0.1) > 250
    assert tried(0.8) < 30


def periodic(row: Row, position: int) -> int:
    return 3 + position % 5


def run(
    choose: Callable[[Row, int], int] | None = None, *, requests: int = 1, max_tokens: int = 60, **changes: int
) -> tuple[dict[str, list[int | None]], EngineStats]:
    config = replace(EngineConfig(max_model_len=200, max_num_seqs=32, num_blocks=500, block_size=4), **changes)
    engine = Engine(config, FakeExecutor(choose=choose), clock=lambda: 0.0)
    for at in range(requests):
        engine.add(str(at), [1, 2], SamplingParams(max_tokens=max_tokens, seed=at, ignore_eos=True))
    got: dict[str, list[int | None]] = {str(at): [] for at in range(requests)}
    ends = 0
    while engine.has_work:
        for output in engine.step():
            got[output.request_id].append(output.token_id)
            ends += output.finish_reason is not None
        engine.check()
    assert ends == requests
    return got, engine.stats()


def test_a_repetitive_answer_takes_a_fraction_of_the_steps() -> None:
    expected, plain = run(periodic, num_speculative_tokens=0)
    got, stats = run(periodic)
    assert got == expected
    assert (plain.steps, plain.num_draft_tokens) == (60, 0)
    assert stats.steps < 20
    assert stats.num_accepted_tokens == 60 - stats.steps
    assert stats.num_drafts <= stats.num_draft_tokens
    assert stats.generated_tokens == 60


def test_an_answer_never_grows_over_its_limit() -> None:
    for max_tokens in range(1, 30):
        got, _ = run(periodic, max_tokens=max_tokens)
        assert len(got["0"]) == max_tokens


def test_a_large_batch_and_a_switch_turn_it_off() -> None:
    assert run(periodic, requests=16)[1].num_draft_tokens == 0
    assert run(periodic, requests=4)[1].num_draft_tokens > 0
    assert run(periodic, requests=4, max_speculative_batch=0)[1].num_draft_tokens == 0


def test_a_step_has_no_more_tokens_than_allowed() -> None:
    executor = FakeExecutor(choose=periodic)
    engine = Engine(EngineConfig(max_model_len=200, num_blocks=500), executor)
    for at in range(5):
        engine.add(str(at), [1, 2], SamplingParams(max_tokens=90, seed=at, ignore_eos=True))
    while engine.has_work:
        engine.step()
    sizes = [batch.num_tokens for batch in executor.batches]
    assert 10 < max(sizes) <= 16


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=40, ignore_eos=True, presence_penalty=0.5),
        SamplingParams(max_tokens=40, ignore_eos=True, repetition_penalty=1.5),
        SamplingParams(max_tokens=40, min_tokens=40),
    ],
)
def test_what_depends_on_earlier_tokens_gets_no_guesses(params: SamplingParams) -> None:
    engine = Engine(EngineConfig(max_model_len=200), FakeExecutor(choose=periodic))
    engine.add("a", [1, 2], params)
    while engine.has_work:
        engine.step()
    assert engine.stats().num_draft_tokens == 0


@pytest.mark.parametrize("num_blocks", [12, 16, 60])
def test_guesses_take_no_block_from_anybody(num_blocks: int) -> None:
    def answers(guesses: int) -> tuple[dict[str, list[int | None]], EngineStats]:
        config = EngineConfig(
            max_model_len=40, max_num_seqs=3, num_blocks=num_blocks, block_size=4, num_speculative_tokens=guesses
        )
        executor = MemoryExecutor(num_blocks, 4, repeats=True)
        engine = Engine(config, executor, clock=lambda: 0.0)
        for at in range(6):
            engine.add(str(at), [at, 1], SamplingParams(max_tokens=30, seed=at % 2, ignore_eos=True))
        got: dict[str, list[int | None]] = {str(at): [] for at in range(6)}
        while engine.has_work:
            for output in engine.step():
                got[output.request_id].append(output.token_id)
            engine.check()
        return got, engine.stats()

    expected, plain = answers(0)
    got, stats = answers(4)
    assert got == expected
    assert stats.num_accepted_tokens > 0
    if num_blocks == 60:
        assert plain.preemptions == stats.preemptions == 0
