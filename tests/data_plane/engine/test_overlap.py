"""Host work during the device's step: what is done then, and that it changes no answer and no book."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.engine.batch import Batch, Sampled
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from data_plane.execution.overlapping import OverlappingRunner
from kernels.cpu.decoder import Decoder, StepInput
from tests.data_plane.engine.memory_executor import MemoryExecutor
from tests.data_plane.engine.test_engine_properties import Arrival, arrival_strategy, config_strategy
from tests.fakes.executor import FakeExecutor, fake_token


class OverlappedMemory(MemoryExecutor):
    """A device that is as late as can be: the engine's work is done before the first token is written."""

    def run_while(self, batch: Batch, work: Callable[[], None]) -> list[Sampled]:
        before = [(list(row.tokens), row.start, list(row.blocks)) for row in batch.rows]
        work()
        after = [(list(row.tokens), row.start, list(row.blocks)) for row in batch.rows]
        assert after == before, "the engine changed the batch that runs"
        return self.run(batch)


class Overlapped(FakeExecutor):
    """Its tokens are those of `fake_token`; `after_work` looks at the engine when the next step should be prepared."""

    after_work: Callable[[], None] = staticmethod(lambda: None)

    def run_while(self, batch: Batch, work: Callable[[], None]) -> list[Sampled]:
        work()
        self.after_work()
        return self.run(batch)


class SlowDevice(OverlappingRunner):
    """The runner's two threads with a device that does not get on before the engine's work is done."""

    def __init__(self) -> None:
        super().__init__(cast(Decoder, None))
        self.fake = FakeExecutor()
        self.may_end = threading.Event()
        self.waited: list[bool] = []

    def pack(self, batch: Batch) -> StepInput:
        return StepInput([], [], [], [], [])

    def compute(self, batch: Batch, packed: StepInput) -> list[Sampled]:
        self.waited.append(self.may_end.wait(timeout=20))
        self.may_end.clear()
        return self.fake.run(batch)


def config(**changes: int) -> EngineConfig:
    whole = EngineConfig(
        max_model_len=64, max_num_seqs=4, max_num_batched_tokens=16, block_size=4, num_blocks=64,
        eos_token_ids=frozenset({2}), num_speculative_tokens=0,
    )  # fmt: skip
    return replace(whole, **changes)


def run(engine: Engine) -> dict[str, list[Output]]:
    got: dict[str, list[Output]] = {}
    while engine.has_work:
        for output in engine.step():
            got.setdefault(output.request_id, []).append(output)
        engine.check()
    return got


def replace_request(engine: Engine, old: str, new: str, params: SamplingParams) -> None:
    engine.abort(old)
    engine.add(new, [7, 8], params)


def tokens(outputs: Sequence[Output]) -> list[int | None]:
    return [output.token_id for output in outputs]


def test_the_next_step_is_prepared_while_the_device_runs() -> None:
    """The device ends its step only when the engine has admitted, during that step, the request that came in it."""
    device = SlowDevice()
    engine = Engine(config(), device)
    engine.add("a", [5], SamplingParams(max_tokens=6, seed=1, ignore_eos=True))
    arrivals = ["b"]

    def meanwhile() -> None:
        if arrivals:
            engine.add(arrivals.pop(), [1, 2, 3, 4, 5], SamplingParams(max_tokens=2, seed=3, ignore_eos=True))

    prepare = engine.scheduler.foresee

    def foresee(batch: Batch, now: float) -> None:
        prepare(batch, now)
        assert threading.current_thread().name == "engine-ahead"
        device.may_end.set()

    engine.scheduler.foresee = foresee
    engine.step(meanwhile)
    assert [request.request_id for request in engine.scheduler.running] == ["a", "b"]
    engine.step(meanwhile)
    assert [(row.request_id, row.start) for row in device.fake.batches[1].rows] == [("a", 1), ("b", 0)]
    assert device.fake.batches[1].rows[0].tokens == [fake_token(1, 1)]
    while engine.has_work:
        engine.step(meanwhile)
        engine.check()
    assert all(device.waited), "the device waited in vain for the engine's work"
    assert engine.stats().foreseen_steps == engine.stats().steps - 1


def test_what_the_work_raises_is_no_fault_of_the_executor() -> None:
    device = SlowDevice()
    engine = Engine(config(), device)
    engine.add("a", [5], SamplingParams(max_tokens=6))

    def meanwhile() -> None:
        device.may_end.set()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.step(meanwhile)
    assert engine.stats().failed_steps == 0


def test_blocks_are_named_and_allocated_ahead() -> None:
    executor = Overlapped()
    engine = Engine(config(), executor)
    engine.add("a", list(range(10, 18)), SamplingParams(max_tokens=6, seed=1, ignore_eos=True))
    seen: list[int] = []
    executor.after_work = lambda: seen.append(len(engine.scheduler.requests["a"].blocks))
    engine.step()
    # 8 tokens fill two blocks, and the token that comes next has its own already
    assert (len(executor.batches[0].rows[0].blocks), seen) == (2, [3])
    run(engine)
    assert engine.stats().num_free_blocks == 64


def test_an_end_that_nobody_foresaw_takes_its_row_out() -> None:
    executor = Overlapped(choose=lambda row, position: 2 if row.seed == 1 and position == 5 else 9)
    engine = Engine(config(), executor)
    engine.add("a", [5, 6], SamplingParams(max_tokens=9, seed=1))
    engine.add("b", [5, 6], SamplingParams(max_tokens=9, seed=3))
    got = run(engine)
    assert tokens(got["a"]) == [9, 9, 9, 2]
    assert (got["a"][-1].finish_reason, len(got["b"])) == ("stop", 9)
    assert [[row.request_id for row in batch.rows] for batch in executor.batches[3:5]] == [["a", "b"], ["b"]]
    assert engine.stats().foreseen_steps == 8


def test_who_waits_gets_a_place_in_the_step_after_it_falls_free() -> None:
    for kind in (FakeExecutor, Overlapped):
        executor = kind(choose=lambda row, position: 2 if row.seed == 1 and position == 5 else 9)
        engine = Engine(config(max_num_seqs=2), executor)
        for at, name in enumerate("abc"):
            engine.add(name, [5, 6 + at], SamplingParams(max_tokens=9, seed=1 + at))
        run(engine)
        rows = [[row.request_id for row in batch.rows] for batch in executor.batches[:5]]
        assert rows == [["a", "b"]] * 4 + [["b", "c"]]


def test_an_abort_during_the_step_gets_no_more_tokens_and_frees_its_blocks() -> None:
    engine = Engine(config(), Overlapped())
    for name in ("a", "b"):
        engine.add(name, [5, 6], SamplingParams(max_tokens=9, seed=1, ignore_eos=True))
    engine.step()
    outputs = engine.step(lambda: engine.abort("a"))
    assert [output.request_id for output in outputs] == ["b"]
    engine.check()
    # one of the same name is another request, whatever the step that runs gives for the old one
    again = SamplingParams(max_tokens=2, seed=4, ignore_eos=True)
    outputs = engine.step(lambda: replace_request(engine, "b", "b", again))
    assert [(output.request_id, output.finish_reason) for output in outputs] == [("a", "abort")]
    got = run(engine)
    assert [(o.token_id, o.finish_reason) for o in got["b"]] == [
        (None, "abort"), (fake_token(4, 2), None), (fake_token(4, 3), "length"),
    ]  # fmt: skip
    assert engine.stats().num_free_blocks == 64


def test_one_admitted_ahead_may_be_aborted_before_its_first_step() -> None:
    executor = Overlapped()
    engine = Engine(config(), executor)
    engine.add("a", [5, 6], SamplingParams(max_tokens=4, seed=1, ignore_eos=True))
    engine.step(lambda: engine.add("b", [1] * 9, SamplingParams(max_tokens=4)))
    assert engine.stats().running == 2
    engine.abort("b")
    engine.check()
    got = run(engine)
    assert tokens(got["b"]) == [None]
    assert len(got["a"]) == 3
    assert all(row.request_id == "a" for batch in executor.batches for row in batch.rows)


def test_a_failed_step_loses_its_own_requests_only() -> None:
    executor = Overlapped(fail_on=lambda batch: RuntimeError("broken") if len(batch.rows) == 2 else None)
    engine = Engine(config(max_num_seqs=3), executor)
    params = SamplingParams(max_tokens=4, seed=1, ignore_eos=True)
    engine.add("a", [5, 6], params)
    engine.add("b", [5, 6], params)
    outputs = engine.step(lambda: replace_request(engine, "b", "c", params))
    assert [(output.request_id, output.finish_reason) for output in outputs] == [("a", "error")]
    engine.check()
    got = run(engine)
    assert (tokens(got["b"]), len(got["c"])) == ([None], 4)


def test_a_full_pool_still_preempts_and_the_tokens_stay_the_same() -> None:
    def answers(executor: MemoryExecutor) -> tuple[dict[str, list[int | None]], Engine]:
        engine = Engine(config(num_blocks=12), executor, clock=executor.clock)
        for name in ("a", "b", "c"):
            engine.add(name, [len(name), 3, ord(name)], SamplingParams(max_tokens=30, seed=4, ignore_eos=True))
        return {name: tokens(got) for name, got in run(engine).items()}, engine

    plain, _ = answers(MemoryExecutor(12, 4))
    overlapped, engine = answers(OverlappedMemory(12, 4))
    assert overlapped == plain
    assert engine.stats().preemptions > 0 and engine.stats().foreseen_steps > 20


def drain(engine: Engine, arrivals: list[Arrival]) -> dict[str, list[Output]]:
    """Every second request comes, and every second abort, while a step runs; the others between two steps."""
    outputs: dict[str, list[Output]] = {}

    def add(at: int) -> None:
        arrival = arrivals[at]
        try:
            engine.add(f"r{at}", arrival.prompt, arrival.params, tenant=arrival.tenant, priority=arrival.priority)
            outputs[f"r{at}"] = []
        except ValueError:
            pass

    due: list[Callable[[], None]] = []

    def meanwhile() -> None:
        while due:
            due.pop(0)()

    step = 0
    while engine.has_work or due or step <= max((a.step for a in arrivals), default=0):
        meanwhile()  # where no batch ran
        for at, arrival in enumerate(arrivals):
            if arrival.step == step:
                due.append(lambda at=at: add(at))
            if arrival.abort_after is not None and arrival.step + arrival.abort_after == step:
                due.append(lambda at=at: engine.abort(f"r{at}"))
            if at % 2:
                meanwhile()
        for output in engine.step(meanwhile):
            outputs[output.request_id].append(output)
        engine.check()
        step += 1
        assert step < 20_000, "the engine does not come to an end"
    return outputs


@given(config_strategy, st.lists(arrival_strategy, max_size=12), st.booleans())
@settings(max_examples=200, deadline=None)
def test_answers_are_those_without_overlap(config: EngineConfig, arrivals: list[Arrival], repeats: bool) -> None:
    """Whatever is cached, guessed, preempted or aborted, and whenever."""
    executor = OverlappedMemory(config.num_blocks, config.block_size, repeats=repeats)
    engine = Engine(config, executor, clock=executor.clock)
    overlapped = drain(engine, arrivals)
    assert all(0 < count <= config.max_num_batched_tokens for count in executor.budgets)
    other = MemoryExecutor(config.num_blocks, config.block_size, repeats=repeats)
    plain = drain(Engine(config, other, clock=other.clock), [replace(a, abort_after=None) for a in arrivals])
    assert overlapped.keys() == plain.keys()
    for name, got in overlapped.items():
        ends = [output for output in got if output.finish_reason is not None]
        assert ends == got[-1:], f"{name} ended {len(ends)} times"
        made, expected = ([t for t in tokens(outputs) if t is not None] for outputs in (got, plain[name]))
        if ends[0].finish_reason == "abort":
            assert made == expected[: len(made)]
        else:
            assert (made, ends[0].finish_reason) == (expected, plain[name][-1].finish_reason)
            assert got[0].prompt_logprobs == plain[name][0].prompt_logprobs
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.num_free_blocks) == (0, 0, config.num_blocks)
