"""The prefix cache: what is found, who finds it, what is never found, and answers that stay what they were."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.engine.blocks import BlockPool
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.prefix_cache import PrefixCache
from data_plane.engine.sampling import SamplingParams
from tests.data_plane.engine.memory_executor import MemoryExecutor
from tests.fakes.executor import FakeExecutor

SECRET = b"secret"


def engine_of(num_blocks: int = 64, *, cached: bool = True, **changes: int) -> Engine:
    config = EngineConfig(
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        block_size=4,
        num_blocks=num_blocks,
        enable_prefix_caching=cached,
    )
    executor = MemoryExecutor(num_blocks, 4)
    return Engine(replace(config, **changes), executor, clock=executor.clock)


def ask(
    engine: Engine, name: str, prompt: Sequence[int], tenant: str = "", salt: str = "", **params: int
) -> list[Output]:
    wanted = replace(SamplingParams(max_tokens=6, seed=1, ignore_eos=True), **params)
    engine.add(name, prompt, wanted, tenant=tenant, cache_salt=salt)
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
        engine.check()
    return outputs


def tokens(outputs: Sequence[Output]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


def test_the_second_request_computes_only_what_is_new() -> None:
    engine = engine_of()
    prompt = list(range(30))
    first = ask(engine, "a", prompt)
    computed = engine.stats().computed_tokens
    second = ask(engine, "b", prompt)
    assert tokens(second) == tokens(first)
    assert (first[0].cached_tokens, second[0].cached_tokens) == (0, 28)
    assert engine.stats().computed_tokens - computed == 2 + 5
    assert (engine.stats().prefix_cache_queries, engine.stats().prefix_cache_hits) == (60, 28)
    assert second[0].start is not None and second[0].start.cached_tokens == 28


def test_answers_are_found_too_so_a_dialogue_goes_on_where_it_stopped() -> None:
    engine = engine_of()
    prompt = list(range(10))
    answer = tokens(ask(engine, "a", prompt, max_tokens=15))
    # the answer's last token was never an input, so 24 of 25 tokens were computed
    assert ask(engine, "b", [*prompt, *answer, 3, 4])[0].cached_tokens == 24


def test_what_a_waiting_request_will_find_outlasts_those_before_it() -> None:
    engine = engine_of(num_blocks=10, max_num_seqs=1)
    known, other, new = (list(range(start, start + 17)) for start in (0, 20, 40))
    for name, prompt in (("a", known), ("b", other)):
        ask(engine, name, prompt, max_tokens=1)
    wanted = SamplingParams(max_tokens=1, seed=1, ignore_eos=True)
    engine.add("c", new, wanted, priority=-1)
    outputs = ask(engine, "d", known, max_tokens=1)
    # "c" took two blank blocks and three of what was there: not of "d", which was the oldest until it was asked for
    assert [output.start.cached_tokens for output in outputs if output.start is not None] == [0, 16]


@pytest.mark.parametrize(("length", "cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8)])
def test_the_last_token_is_always_computed(length: int, cached: int) -> None:
    engine = engine_of()
    first = ask(engine, "a", list(range(length)))
    second = ask(engine, "b", list(range(length)))
    assert tokens(first) == tokens(second)
    assert second[0].cached_tokens == cached


def test_nobody_finds_what_another_tenant_or_another_salt_left() -> None:
    engine = engine_of()
    prompt = list(range(20))
    ask(engine, "a", prompt, "one")
    assert ask(engine, "b", prompt, "two")[0].cached_tokens == 0
    assert ask(engine, "c", prompt, "one", "salt")[0].cached_tokens == 0
    assert ask(engine, "d", prompt, "one", "salt")[0].cached_tokens == 16
    # a tenant's name cannot be finished by a salt
    assert ask(engine, "e", prompt, "on", "e")[0].cached_tokens == 0
    assert ask(engine, "f", prompt, "one")[0].cached_tokens == 16


def test_names_depend_on_all_that_came_before_on_the_tenant_and_on_the_secret() -> None:
    cache, other = (PrefixCache(BlockPool(4, 4), secret) for secret in (SECRET, b"other"))
    text = list(range(8))
    assert cache.chain(text, "a").name(1) == cache.chain(text, "a").name(1)
    names = {
        cache.chain(text, "a").name(1),
        cache.chain(text, "b").name(1),
        cache.chain(text, "a", "salt").name(1),
        cache.chain([9, *text[1:]], "a").name(1),
        cache.chain([*text[4:], *text[4:]], "a").name(1),
        cache.chain(text[4:], "a").name(0),
        other.chain(text, "a").name(1),
    }
    assert len(names) == 7


def test_an_equal_block_after_another_beginning_is_not_found() -> None:
    engine = engine_of()
    tail = [5, 6, 7, 8, 9]
    first = ask(engine, "a", [1, 2, 3, 4, *tail])
    second = ask(engine, "b", [1, 2, 3, 0, *tail])
    assert second[0].cached_tokens == 0
    assert tokens(first) != tokens(second)


def test_prompt_logprobs_are_computed_whole_and_can_be_found_by_others() -> None:
    engine = engine_of()
    prompt = list(range(20))
    first = ask(engine, "a", prompt, prompt_logprobs=0)[0]
    second = ask(engine, "b", prompt, prompt_logprobs=0)[0]
    assert second.cached_tokens == 0
    assert first.prompt_logprobs == second.prompt_logprobs
    assert engine.stats().prefix_cache_queries == 0
    assert ask(engine, "c", prompt)[0].cached_tokens == 16


def test_what_is_used_least_recently_goes_first() -> None:
    engine = engine_of(12, max_speculative_batch=0)
    old, new = [1] * 17, [2] * 17
    ask(engine, "old", old, max_tokens=1)
    ask(engine, "new", new, max_tokens=1)
    assert ask(engine, "again", old, max_tokens=1)[0].cached_tokens == 16
    ask(engine, "other", [3] * 21, max_tokens=1)
    cache = engine.scheduler.cache
    # 4 blocks each and 4 blank ones: of the 6 that were needed 2 were taken from a text, and not from the old one
    assert len(cache.match(cache.chain(old, ""))) == 4
    assert len(cache.match(cache.chain(new, ""))) == 2


def test_two_that_run_together_share_and_the_first_end_takes_nothing_away() -> None:
    engine = engine_of(12)
    prompt = list(range(20))
    ask(engine, "a", prompt, max_tokens=1)
    alone = tokens(ask(engine, "b", prompt, max_tokens=12))
    engine.add("short", prompt, SamplingParams(max_tokens=2, seed=1, ignore_eos=True))
    assert tokens([o for o in ask(engine, "long", prompt, max_tokens=12) if o.request_id == "long"]) == alone
    assert engine.stats().preemptions == 0
    assert engine.stats().num_free_blocks == 12


@pytest.mark.parametrize("own", [0, 3])
def test_of_many_that_come_at_once_only_the_first_computes_what_they_share(own: int) -> None:
    engine = engine_of(100)
    prompts = [[*range(30), *[at] * own] for at in range(4)]
    for at, prompt in enumerate(prompts):
        engine.add(str(at), prompt, SamplingParams(max_tokens=1, seed=1))
    cached: dict[str, int] = {}
    while engine.has_work:
        for output in engine.step():
            cached[output.request_id] = output.cached_tokens
        engine.check()
    assert cached == {"0": 0, "1": 28, "2": 28, "3": 28}
    assert engine.stats().computed_tokens == 30 + own + 3 * (2 + own)


def test_nobody_waits_for_another_tenants_or_for_a_text_that_only_ends_alike() -> None:
    engine = engine_of(100, max_num_batched_tokens=64)
    engine.add("a", list(range(20)), SamplingParams(max_tokens=1), tenant="one")
    engine.add("b", list(range(20)), SamplingParams(max_tokens=1), tenant="two")
    engine.add("c", [9, *range(1, 20)], SamplingParams(max_tokens=1), tenant="one")
    assert len(engine.step()) == 3


def test_a_preempted_request_comes_back_through_the_cache() -> None:
    def run(cached: bool) -> tuple[list[list[int]], int, int]:
        engine = engine_of(13, cached=cached, max_speculative_batch=0)
        for at in range(2):
            engine.add(str(at), [at] * 4, SamplingParams(max_tokens=32, seed=1, ignore_eos=True))
        got: list[list[int]] = [[], []]
        while engine.has_work:
            for output in engine.step():
                got[int(output.request_id)].append(output.token_id or 0)
                assert output.cached_tokens == 0, "of the prompt nothing was cached when it first ran"
            engine.check()
        return got, engine.stats().preemptions, engine.stats().computed_tokens

    without, some, computed = run(cached=False)
    got, preemptions, fewer = run(cached=True)
    assert got == without
    assert some and preemptions
    assert fewer < computed


def test_a_request_whose_numbers_broke_leaves_nothing_to_find() -> None:
    executor = FakeExecutor(broken_ids={"bad"})
    engine = Engine(EngineConfig(max_model_len=64, block_size=4, num_blocks=16, max_num_batched_tokens=32), executor)
    prompt = list(range(40))
    assert ask(engine, "bad", prompt)[-1].finish_reason == "error"
    assert ask(engine, "good", prompt)[0].cached_tokens == 0


def test_it_can_be_turned_off() -> None:
    engine = engine_of(cached=False)
    for name in ("a", "b"):
        assert ask(engine, name, list(range(20)))[0].cached_tokens == 0
    assert engine.scheduler.pool.kept == set()


@given(
    st.integers(2, 12),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 40), st.integers(1, 3)), max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_what_is_found_is_what_was_entered(num_blocks: int, steps: list[tuple[int, int, int, int]]) -> None:
    """Against a model: the memory of each block, written when tokens are computed."""
    size = 2
    pool = BlockPool(num_blocks, size)
    cache = PrefixCache(pool, SECRET)
    memory: dict[int, tuple[str, tuple[int, ...]]] = {}
    held: list[list[int]] = []
    for kind, length, seed, tenant in steps:
        if kind == 0 and held:
            pool.free(held.pop(seed % len(held)))
        else:
            name, text = f"t{tenant % 2}", [(seed + at * at) % 3 for at in range(length * size)]
            chain = cache.chain(text, name)
            found = cache.match(chain)
            for at, block in enumerate(found):
                assert memory[block] == (name, tuple(text[: (at + 1) * size]))
            missing = length - len(found)
            if pool.num_free - sum(not pool.is_held(block) for block in found) < missing:
                continue
            pool.share(found)
            blocks = found + pool.allocate(missing)
            chain.num_entered = len(found)
            computed = max(len(found) * size, seed % (len(text) + 1))
            for at in range(len(found), length):
                memory[blocks[at]] = (name, tuple(text[: (at + 1) * size]) if (at + 1) * size <= computed else ())
            cache.enter(chain, blocks, computed)
            held.append(blocks)
            if kind == 3:
                cache.withdraw(blocks)
        pool.check(held)
        cache.check()
