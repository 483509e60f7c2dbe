"""The first steps of an executor, before anybody waits for them. Knows nothing of devices."""

from data_plane.engine.batch import Batch, Row
from data_plane.engine.config import EngineConfig
from data_plane.engine.engine import Executor
from data_plane.engine.sampling import SamplingParams

WARM_UP_TOKENS = 32
"""Enough for every operator of a prefill to have run once; the weights are paged in by the way."""


def touch(executor: Executor) -> None:
    """The least step that pages all weights in. For executors that compute a prefill and a decode alike."""
    params = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9)
    executor.run(Batch((Row("warm-up", [0], 0, [0], params, seed=0, wants_token=True),)))


def warm_up(executor: Executor, config: EngineConfig) -> None:
    """One prefill and one decode, so that the first request does not pay for first calls and page faults.

    It writes to the first blocks of the cache, which no request holds yet.
    """
    room = min(config.max_model_len, config.num_blocks * config.block_size) - 1
    length = min(WARM_UP_TOKENS, config.max_num_batched_tokens, room)
    blocks = list(range(-(-(length + 1) // config.block_size)))
    for start, count in ((0, length), (length, 1)):
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=1, temperature=temperature, top_p=0.9)
            row = Row("warm-up", [0] * count, start, blocks, params, seed=0, wants_token=True)
            executor.run(Batch((row,)))
