"""The engine's thread takes in requests while the device runs a step."""

import asyncio
import threading
from collections.abc import Callable

from data_plane.engine.batch import Batch, Sampled
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from data_plane.runner.engine_loop import EngineLoop, Refusal
from tests.fakes.executor import FakeExecutor


class Held(FakeExecutor):
    """Its first step goes on until the test lets the engine work beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = threading.Event()
        self.may_work = threading.Event()

    def run_while(self, batch: Batch, work: Callable[[], None]) -> list[Sampled]:
        self.runs.set()
        assert self.may_work.wait(timeout=20)
        work()
        return self.run(batch)


async def test_what_comes_while_a_step_runs_is_in_the_next_one_or_refused() -> None:
    executor = Held()
    loop = EngineLoop(Engine(EngineConfig(max_model_len=64), executor))
    loop.start()
    told: list[Output | Refusal] = []
    is_over = asyncio.Event()

    def sink(output: Output | Refusal) -> None:
        told.append(output)
        if not loop.in_flight:
            is_over.set()

    params = SamplingParams(max_tokens=2, ignore_eos=True)
    loop.submit("a", [1, 2], params, sink)
    assert await asyncio.to_thread(executor.runs.wait, 20)
    loop.submit("b", [3, 4], params, sink)
    loop.submit("none", [], params, sink)
    executor.may_work.set()
    await asyncio.wait_for(is_over.wait(), 20)
    loop.close()
    assert [{row.request_id for row in batch.rows} for batch in executor.batches] == [{"a"}, {"a", "b"}, {"b"}]
    refused = [output for output in told if isinstance(output, Refusal)]
    assert [refusal.request_id for refusal in refused] == ["none"]
    assert "no tokens" in refused[0].message
