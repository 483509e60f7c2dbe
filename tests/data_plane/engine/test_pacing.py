"""The cost of steps as learned from them, and a long prompt that must not stall those who read along."""

import random
from collections.abc import Sequence

import pytest

from data_plane.engine.batch import Batch, Sampled
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Engine
from data_plane.engine.pacing import ASSUMED_SLOPE, FIRST_CHUNK, LEAST_CHUNK, StepTimes
from data_plane.engine.sampling import SamplingParams
from tests.fakes.executor import FakeExecutor


def learned(sizes: Sequence[int], cost: float = 1e-4, base: float = 5e-3, noise: float = 0.1) -> StepTimes:
    times = StepTimes()
    random.seed(3)
    for size in sizes:
        times.observe(size, 0, (base + cost * size) * random.uniform(1, 1 + noise))
    return times


def test_nothing_is_known_at_first() -> None:
    times = StepTimes()
    assert times.decode_s(4) is None
    assert times.price(4) == ASSUMED_SLOPE
    assert times.chunk(4, 512, 2.5) == FIRST_CHUNK
    assert times.chunk(4, 20, 2.5) == 20
    times.observe(0, 512, 0.1)
    assert times.chunk(4, 512, 2.5) == FIRST_CHUNK


def test_the_two_parts_of_a_decode_are_told_apart() -> None:
    times = learned([1, 8, 32, 4, 16] * 12, noise=0.0)
    assert times.decode_s(2) == pytest.approx(5.2e-3, rel=0.02)
    assert times.decode_s(30) == pytest.approx(8e-3, rel=0.02)
    # of 8 tokens' step one more takes 0.1 of 5.8 ms, in which 8 tokens are decoded
    assert times.price(8) == pytest.approx(8 * 1e-4 / 5.8e-3, rel=0.05)


def test_equal_sizes_teach_the_mean_and_no_slope() -> None:
    times = learned([8] * 50, noise=0.0)
    assert times.decode_s(8) == pytest.approx(5.8e-3, rel=1e-6)
    assert times.price(8) == pytest.approx(ASSUMED_SLOPE, rel=1e-6)


def test_a_hiccup_counts_little_and_a_change_is_followed() -> None:
    times = learned([8] * 50)
    before = times.decode_s(8)
    times.observe(8, 0, 1.0)
    after = times.decode_s(8)
    assert before and after and after < 1.1 * before
    for _ in range(200):
        times.observe(8, 0, 0.05)
    assert times.decode_s(8) == pytest.approx(0.05, rel=0.05)


def test_a_chunk_fills_the_time_allowed() -> None:
    times = learned([8] * 50, noise=0.0)
    for _ in range(20):
        times.observe(8, 100, 5.8e-3 + 100 * 1e-4)
    # 1.5 times 5.8 ms at 0.1 ms a token: 87, and 80 is the next multiple below
    assert times.chunk(8, 512, 2.5) == 80
    assert times.chunk(8, 30, 2.5) == 30
    assert times.chunk(8, 512, 1.2) == 11
    assert times.chunk(8, 512, 1.0001) == LEAST_CHUNK


class TimedExecutor(FakeExecutor):
    """A step costs 6 ms, 0.1 ms for each decoded token, and for each prompt token `token_s` and its place's share."""

    now = 0.0
    token_s = 1.2e-4

    def run(self, batch: Batch) -> list[Sampled]:
        self.now += 6e-3
        for row in batch.rows:
            if len(row.tokens) == 1 + row.num_drafts:
                self.now += 1e-4 * len(row.tokens)
            else:
                self.now += sum(self.token_s + 2e-8 * (row.start + at) for at in range(len(row.tokens)))
        return super().run(batch)

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("token_s", [3e-5, 1.2e-4, 1.5e-3])
@pytest.mark.parametrize("streams", [1, 8, 24])
def test_a_long_prompt_makes_others_wait_at_most_three_times_as_long(streams: int, token_s: float) -> None:
    executor = TimedExecutor()
    executor.token_s = token_s
    engine = Engine(EngineConfig(max_model_len=8192, num_blocks=2000), executor, clock=executor.clock)
    params = SamplingParams(max_tokens=4000, seed=1, ignore_eos=True)
    for at in range(streams):
        engine.add(str(at), [at] * 20, params)
    last: dict[str, float] = {}
    gaps: list[float] = []

    def step() -> list[str]:
        firsts: list[str] = []
        for output in engine.step():
            if output.request_id not in last:
                firsts.append(output.request_id)
            else:
                gaps.append(executor.now - last[output.request_id])
            last[output.request_id] = executor.now
        return firsts

    for _ in range(120):
        step()
    calm = sorted(gaps[-40 * streams :])[int(39 * streams * 0.99)]
    gaps.clear()
    asked_at = executor.now
    engine.add("long", list(range(4096)), params)
    while "long" not in step():
        pass
    assert sorted(gaps)[int(len(gaps) * 0.99)] <= 3 * calm
    # and it is not held up for ever either: alone it takes `alone_s`
    alone_s = 4096 * (token_s + 4e-5)
    assert executor.now - asked_at < 3 * alone_s
