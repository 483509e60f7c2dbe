"""Labels of cached blocks: what is held and what is told of it, and that nothing unreachable is ever held."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.sampling import SamplingParams
from tests.data_plane.engine.memory_executor import MemoryExecutor
from tests.fakes.executor import FakeExecutor

SIZE = 4


def engine_of(num_blocks: int) -> Engine:
    config = EngineConfig(
        max_model_len=64, max_num_seqs=3, max_num_batched_tokens=16, block_size=SIZE, num_blocks=num_blocks
    )
    executor = MemoryExecutor(num_blocks, SIZE)
    return Engine(config, executor, clock=executor.clock)


def label(prompt: Sequence[int], at: int) -> int:
    """Of block `at`: a number for all tokens up to its end."""
    return hash((*prompt[: (at + 1) * SIZE], "t"))


def labels(prompt: Sequence[int]) -> dict[int, tuple[int, ...]]:
    return {at: (label(prompt, at),) for at in range(len(prompt) // SIZE)}


def submit(engine: Engine, name: str, prompt: Sequence[int], max_tokens: int = 2) -> None:
    engine.add(name, prompt, SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True), labels=labels(prompt))


def drain(engine: Engine, held: set[int]) -> dict[str, int]:
    """Runs until idle, keeping `held` by what is told; the cached tokens of each request."""
    cached: dict[str, int] = {}
    while engine.has_work:
        for output in engine.step():
            cached[output.request_id] = output.cached_tokens
        for each, is_held in engine.take_changed_labels().items():
            (held.add if is_held else held.discard)(each)
        engine.check()
        assert held == engine.scheduler.cache.held
    return cached


def test_blocks_that_complete_a_chunk_are_told_when_they_come_and_when_they_go() -> None:
    engine, held = engine_of(8), set[int]()
    first, second = [1] * 18, [2] * 22
    submit(engine, "a", first)
    drain(engine, held)
    assert held == {label(first, at) for at in range(4)}
    submit(engine, "b", second)
    drain(engine, held)
    # 8 blocks: 6 for the second, so two of the first are left
    assert held == {label(second, at) for at in range(5)} | {label(first, at) for at in range(2)}


def test_a_cached_block_gets_the_labels_of_whoever_comes_later() -> None:
    engine, held = engine_of(16), set[int]()
    prompt = list(range(20))
    engine.add("a", prompt, SamplingParams(max_tokens=1))
    drain(engine, held)
    assert held == set()
    submit(engine, "b", prompt)
    assert drain(engine, held)["b"] == 16
    assert held == {label(prompt, at) for at in range(5)}
    # a label stays as long as one of its blocks does
    engine.add("c", [7] * 20, SamplingParams(max_tokens=1), labels={0: (label(prompt, 0),)})
    drain(engine, held)
    submit(engine, "d", [9] * 40)
    drain(engine, held)
    assert label(prompt, 0) in held


def test_with_a_withdrawn_block_go_all_that_nobody_finds_any_more() -> None:
    executor = FakeExecutor()
    config = EngineConfig(max_model_len=64, block_size=SIZE, num_blocks=32, max_num_batched_tokens=32)
    engine, held = Engine(config, executor), set[int]()
    common = [1] * 12
    submit(engine, "good", [*common, *[2] * 9])
    drain(engine, held)
    assert len(held) == 5
    executor.broken_ids.add("bad")
    submit(engine, "bad", [*common, 3, 3])
    drain(engine, held)
    assert held == set(), "the shared beginning is not trusted, and what came after it is not found without it"
    submit(engine, "again", [*common, *[2] * 9])
    assert drain(engine, held)["again"] == 0
    assert len(held) == 5


def test_prompt_tokens_to_be_computed_are_counted_without_what_is_cached() -> None:
    engine = engine_of(32)
    prompt = list(range(40))
    submit(engine, "a", prompt)
    assert engine.stats().pending_prompt_tokens == 40
    engine.step()
    assert engine.stats().pending_prompt_tokens == 24
    submit(engine, "b", prompt)
    assert engine.stats().pending_prompt_tokens == 24 + 24
    engine.abort("a")
    assert engine.stats().pending_prompt_tokens == 24
    drain(engine, set())
    stats = engine.stats()
    assert stats.pending_prompt_tokens == 0
    assert stats.prefill_tokens_per_s and stats.decode_tokens_per_s


def begin_alike(text: int, size: int, tail: list[int]) -> list[int]:
    return [*[text] * size, *tail]


prompts = st.builds(
    begin_alike,
    st.integers(1, 3),
    st.integers(1, 24),
    st.lists(st.integers(0, 2), max_size=8),
)


@given(st.integers(11, 30), st.lists(st.tuples(prompts, st.integers(0, 8), st.booleans()), max_size=14))
@settings(max_examples=150, deadline=None)
def test_what_is_held_is_found(num_blocks: int, asked: list[tuple[list[int], int, bool]]) -> None:
    """Whatever came, together or one after another: of every prompt the leading blocks held are those found."""
    engine, held = engine_of(num_blocks), set[int]()
    for number, (prompt, max_tokens, goes_on) in enumerate(asked):
        submit(engine, str(number), prompt, max_tokens)
        if goes_on:
            continue
        drain(engine, held)
        for other, _, _ in asked:
            leading = 0
            while leading < len(other) // SIZE and label(other, leading) in held:
                leading += 1
            assert not any(label(other, at) in held for at in range(leading, len(other) // SIZE))
            cache = engine.scheduler.cache
            assert len(cache.match(cache.chain([*other, 0], ""))) >= leading
