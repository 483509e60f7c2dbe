"""Blocks on a shelf: found by the very rules of the cache, copied in for whoever begins like them, and no others."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.engine.batch import Batch, Sampled
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.sampling import SamplingParams
from data_plane.engine.shelf import CopyingExecutor, Kept, Shelf, hottest
from tests.data_plane.engine.memory_executor import MemoryExecutor

SIZE = 4


class CopyingMemory(MemoryExecutor):
    """Blocks are bytes of its integers."""

    block_bytes = 8 * SIZE
    kv_form = "integers"

    def copy_out(self, block: int) -> bytes:
        numbers = self.memory[block * SIZE : (block + 1) * SIZE]
        return b"".join(number.to_bytes(8, signed=True) for number in numbers)

    def copy_in(self, block: int, content: bytes) -> None:
        numbers = [int.from_bytes(content[at : at + 8], signed=True) for at in range(0, len(content), 8)]
        self.memory[block * SIZE : (block + 1) * SIZE] = numbers


class Lying:
    """What one engine left, in memory."""

    def __init__(self, engine: Engine, most: int = 1000) -> None:
        executor = engine.executor
        assert isinstance(executor, CopyingExecutor)
        found = engine.hold_hottest(most)
        self.secret = engine.scheduler.cache.secret
        self.kept: Sequence[Kept] = [one for one, _ in found]
        self.content: dict[bytes, bytes | None] = {
            one.name: executor.copy_out(block) for one, block in found if block is not None
        }
        engine.let_go([block for _, block in found if block is not None])
        engine.check()

    def read(self, name: bytes) -> bytes | None:
        return self.content[name]


def engine_of(shelf: Shelf | None = None, num_blocks: int = 32, made: type[CopyingMemory] = CopyingMemory) -> Engine:
    config = EngineConfig(
        max_model_len=64, max_num_seqs=3, max_num_batched_tokens=16, block_size=SIZE, num_blocks=num_blocks
    )
    executor = made(num_blocks, SIZE)
    engine = Engine(config, executor, clock=executor.clock, secret=shelf.secret if shelf else b"first")
    engine.use_shelf(shelf)
    return engine


def ask(engine: Engine, prompt: Sequence[int], *, tenant: str = "", salt: str = "") -> tuple[list[int | None], int]:
    """The answer, and how much of the prompt was not computed for it."""
    labels = {at: (hash((*prompt[: (at + 1) * SIZE], tenant, salt)),) for at in range(len(prompt) // SIZE)}
    params = SamplingParams(max_tokens=3, seed=1, ignore_eos=True)
    engine.add("asked", prompt, params, tenant=tenant, cache_salt=salt, labels=labels)
    told: list[int | None] = []
    cached = 0
    while engine.has_work:
        for output in engine.step():
            told.append(output.token_id)
            cached = output.cached_tokens
        engine.check()
    return told, cached


PROMPT = [1, 2, 3, 4] * 5 + [9]


def test_what_one_engine_computed_another_goes_on_from() -> None:
    first = engine_of()
    answer, cached = ask(first, PROMPT)
    assert cached == 0
    held = first.scheduler.cache.held
    second = engine_of(Lying(first))
    assert second.take_changed_labels() == dict.fromkeys(held, True), "whoever routes hears of it at once"
    assert ask(second, PROMPT) == (answer, 20)
    assert second.restored_blocks == 5 and second.stats().computed_tokens == 1 + 2
    assert ask(second, PROMPT) == (answer, 20) and second.restored_blocks == 5, "it is in the cache by now"
    other = [1, 2, 3, 4, 1, 2, 3, 5, 6]
    assert ask(engine_of(Lying(first)), other)[1] == 4, "as far as they begin alike"


def test_another_tenant_and_another_salt_find_nothing() -> None:
    first = engine_of()
    ask(first, PROMPT, tenant="a", salt="x")
    second = engine_of(Lying(first))
    for tenant, salt in (("b", "x"), ("a", "y"), ("", "")):
        assert ask(second, PROMPT, tenant=tenant, salt=salt)[1] == 0
    assert second.restored_blocks == 0
    assert ask(second, PROMPT, tenant="a", salt="x")[1] == 20


def test_a_shelf_of_another_secret_is_refused() -> None:
    first = engine_of()
    ask(first, PROMPT)
    shelf = Lying(first)
    shelf.secret = b"another"
    with pytest.raises(ValueError, match="another secret"):
        first.use_shelf(shelf)


def test_what_cannot_be_read_is_computed_and_the_shelf_is_given_up() -> None:
    first = engine_of()
    answer, _ = ask(first, PROMPT)
    shelf = Lying(first)
    shelf.content[shelf.kept[2].name] = None
    second = engine_of(shelf)
    assert ask(second, PROMPT) == (answer, 8)
    assert not second.scheduler.cache.has_shelf
    assert second.scheduler.cache.held == first.scheduler.cache.held


def test_parked_and_back() -> None:
    engine = engine_of()
    answer, _ = ask(engine, PROMPT)
    shelf = Lying(engine)
    engine.use_shelf(shelf)
    engine.give_back()
    executor = engine.executor
    assert isinstance(executor, CopyingMemory)
    executor.memory = [-1] * len(executor.memory)
    engine.take_back()
    assert ask(engine, PROMPT) == (answer, 20)


def test_log_probabilities_of_the_prompt_are_computed() -> None:
    first = engine_of()
    ask(first, PROMPT)
    second = engine_of(Lying(first))
    second.add("p", PROMPT, SamplingParams(max_tokens=1, seed=1, prompt_logprobs=0))
    while second.has_work:
        second.step()
    assert second.restored_blocks == 0 and second.stats().computed_tokens == len(PROMPT)


def test_the_most_used_are_kept_and_none_without_those_before_it() -> None:
    def one(name: bytes, before: bytes, uses: float) -> Kept:
        return Kept(name, before, (), uses)

    kept = [one(b"a", b"", 5), one(b"b", b"a", 5), one(b"c", b"b", 1), one(b"x", b"", 1), one(b"y", b"x", 4)]
    assert [k.name for k in hottest(kept, 9)] == [b"a", b"b", b"x", b"y", b"c"]
    assert [k.name for k in hottest(kept, 3)] == [b"a", b"b", b"x"], "y would need x too, and there is room for one"
    assert [k.name for k in hottest(kept, 1)] == [b"a"] and not hottest(kept, 0)


def test_system_prompts_outlive_what_was_asked_once() -> None:
    engine = engine_of(num_blocks=64)
    system = [7] * 8
    for at in range(5):
        ask(engine, [*system, *[10 + at] * 9])
    shelf = Lying(engine, most=2)
    assert ask(engine_of(shelf), [*system, 1])[1] == 8


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 2), min_size=1, max_size=24), st.sampled_from("ab")), max_size=8),
    st.integers(0, 12),
    st.integers(8, 20),
)
def test_answers_are_those_of_an_engine_without_a_shelf(
    asked: list[tuple[list[int], str]], most: int, num_blocks: int
) -> None:
    shelf: Lying | None = None
    for prompt, tenant in asked:
        engine = engine_of(shelf, num_blocks)
        plain = engine_of(num_blocks=num_blocks)
        for each, whose in (*asked[:2], (prompt, tenant)):
            assert ask(engine, each, tenant=whose)[0] == ask(plain, each, tenant=whose)[0]
        before, shelf = shelf, Lying(engine, most)
        for kept in shelf.kept:
            if kept.name not in shelf.content:
                assert before is not None, "what is in no cache lay on the shelf before"
                shelf.content[kept.name] = before.content[kept.name]


class Overlapped(CopyingMemory):
    """Has the host's work done before it computes, and refuses to be written to meanwhile."""

    is_busy = False

    def run_while(self, batch: Batch, work: Callable[[], None]) -> list[Sampled]:
        self.is_busy = True
        work()
        results = self.run(batch)
        self.is_busy = False
        return results

    def copy_in(self, block: int, content: bytes) -> None:
        assert not self.is_busy, "a batch may still write to a block that is free by now"
        super().copy_in(block, content)


def test_who_comes_while_a_batch_runs_gets_its_blocks_after_it() -> None:
    first = engine_of()
    answer, _ = ask(first, PROMPT)
    engine = engine_of(Lying(first), made=Overlapped)
    params = SamplingParams(max_tokens=3, seed=1, ignore_eos=True)
    engine.add("other", [5, 6], SamplingParams(max_tokens=6, seed=2, ignore_eos=True))

    def arrive() -> None:
        if engine.stats().steps == 2:
            engine.abort("other")
            engine.add("asked", PROMPT, params)

    told: list[int | None] = []
    while engine.has_work:
        outputs = engine.step(arrive)
        told += [output.token_id for output in outputs if output.request_id == "asked"]
        engine.check()
    assert told == answer and engine.restored_blocks == 5
