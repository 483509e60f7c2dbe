"""Any arrivals, aborts and pool sizes: each request ends exactly once, with the tokens it gets when it runs alone."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from tests.data_plane.engine.memory_executor import VOCAB, MemoryExecutor

EOS = frozenset({7, 11})
TEXTS = [[(at * 7 + text) % VOCAB for at in range(24)] for text in (1, 3)]


@dataclass
class Arrival:
    step: int
    prompt: list[int]
    params: SamplingParams
    abort_after: int | None
    tenant: str = ""
    priority: int = 0


def make_engine(config: EngineConfig, *, repeats: bool = False) -> tuple[Engine, MemoryExecutor]:
    executor = MemoryExecutor(config.num_blocks, config.block_size, repeats=repeats)
    return Engine(config, executor, clock=executor.clock), executor


def drain(engine: Engine, arrivals: list[Arrival]) -> dict[str, list[Output]]:
    """Runs all arrivals at their steps; checks the books after each step."""
    outputs: dict[str, list[Output]] = {}
    step = 0
    while engine.has_work or step <= max((a.step for a in arrivals), default=0):
        for at, arrival in enumerate(arrivals):
            name = f"r{at}"
            if arrival.step == step:
                try:
                    engine.add(name, arrival.prompt, arrival.params, tenant=arrival.tenant, priority=arrival.priority)
                    outputs[name] = []
                except ValueError:
                    continue
            if arrival.abort_after is not None and arrival.step + arrival.abort_after == step:
                engine.abort(name)
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check()
        step += 1
        assert step < 20_000, "the engine does not come to an end"
    return outputs


def begin_alike(size: int, text: int, tail: list[int]) -> list[int]:
    return [*TEXTS[text][:size], *tail]


params_strategy = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 24),
    seed=st.integers(0, 3),
    ignore_eos=st.booleans(),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.sampled_from([frozenset[int](), frozenset({3})]),
    prompt_logprobs=st.sampled_from([None, 0]),
)
arrival_strategy = st.builds(
    Arrival,
    step=st.integers(0, 30),
    # few texts, so that many prompts begin alike
    prompt=st.builds(
        begin_alike,
        st.integers(0, 24),
        st.integers(0, 1),
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
    ),
    params=params_strategy,
    abort_after=st.none() | st.integers(0, 20),
    tenant=st.sampled_from(["", "a", "b"]),
    priority=st.integers(-1, 1),
)


def small_config(seqs: int, extra: int, block_size: int, num_blocks: int, cache: bool, guesses: int) -> EngineConfig:
    return EngineConfig(
        enable_prefix_caching=cache,
        num_speculative_tokens=guesses,
        max_model_len=40,
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + extra,
        block_size=block_size,
        num_blocks=num_blocks,
        eos_token_ids=EOS,
    )


config_strategy = st.builds(
    small_config,
    st.integers(1, 6),
    st.integers(0, 10),
    st.integers(1, 5),
    st.integers(3, 30),
    st.booleans(),
    st.sampled_from([0, 1, 4]),
)


@given(config_strategy, st.lists(arrival_strategy, max_size=12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_request_ends_once_with_its_own_tokens(
    config: EngineConfig, arrivals: list[Arrival], repeats: bool
) -> None:
    """Whatever is cached, guessed, preempted or put first."""
    engine, executor = make_engine(config, repeats=repeats)
    outputs = drain(engine, arrivals)
    assert all(0 < tokens <= config.max_num_batched_tokens for tokens in executor.budgets)
    roomy = EngineConfig(
        max_model_len=40,
        max_num_batched_tokens=64,
        block_size=8,
        num_blocks=5,
        eos_token_ids=EOS,
        enable_prefix_caching=False,
        num_speculative_tokens=0,
    )
    for name, got in outputs.items():
        arrival = arrivals[int(name[1:])]
        ends = [output for output in got if output.finish_reason is not None]
        assert len(ends) == 1, f"{name} ended {len(ends)} times"
        assert got[-1] is ends[0], "nothing comes after the end"
        alone = drain(make_engine(roomy, repeats=repeats)[0], [Arrival(0, arrival.prompt, arrival.params, None)])["r0"]
        tokens = [output.token_id for output in got if output.token_id is not None]
        expected = [output.token_id for output in alone if output.token_id is not None]
        if ends[0].finish_reason == "abort":
            assert tokens == expected[: len(tokens)]
        else:
            assert (tokens, ends[0].finish_reason) == (expected, alone[-1].finish_reason)
            assert [output.prompt_logprobs for output in got] == [output.prompt_logprobs for output in alone]
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.num_free_blocks) == (0, 0, config.num_blocks)


@given(st.integers(0, 3), st.integers(0, 6), st.integers(2, 5), st.integers(1, 9), st.sampled_from([9, 12, 20]))
@settings(deadline=None, max_examples=60)
def test_nothing_starves(victim_at: int, length: int, seqs: int, extra: int, num_blocks: int) -> None:
    """One request of the last priority ends while better ones, of a tenant that got less, never cease to come."""
    config = EngineConfig(
        max_model_len=30, max_num_seqs=seqs, max_num_batched_tokens=seqs + extra, block_size=2, num_blocks=num_blocks
    )
    engine, _ = make_engine(config)
    params = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
    ended = False
    for step in range(3000):
        if step == victim_at:
            engine.add("victim", [1] * (length + 4), params, tenant="greedy", priority=9)
        while len(engine.scheduler.waiting) < 4:
            name = f"{step}-{len(engine.scheduler.requests)}"
            engine.add(name, [step % VOCAB, len(name)], params, tenant=f"t{step}", priority=-1)
        ended = any(output.request_id == "victim" and output.finish_reason for output in engine.step())
        engine.check()
        if ended:
            break
    assert ended


@given(st.integers(2, 30), st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_nobody_overtakes_in_the_queue(count: int, budget: int) -> None:
    """Equal requests get their first tokens in the order in which they came."""
    config = EngineConfig(
        max_model_len=20, max_num_seqs=min(3, budget), max_num_batched_tokens=budget, block_size=2, num_blocks=12
    )
    engine, _ = make_engine(config)
    params = SamplingParams(max_tokens=3, seed=1, ignore_eos=True)
    for at in range(count):
        engine.add(f"{at:02d}", [at] * 7, params)
    firsts: list[str] = []
    while engine.has_work:
        firsts.extend(o.request_id for o in engine.step() if o.request_id not in firsts)
        engine.check()
    assert firsts == sorted(firsts)
    assert len(firsts) == count
