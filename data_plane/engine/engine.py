"""Turns queued requests into tokens. Knows nothing of HTTP, text or tensors.

One thread at a time may use it. A request ends exactly once: with an output whose `finish_reason` is set.
"""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from data_plane.engine.batch import Batch, Sampled
from data_plane.engine.config import EngineConfig
from data_plane.engine.outputs import Output
from data_plane.engine.request import Request
from data_plane.engine.sampling import SamplingParams
from data_plane.engine.scheduler import Scheduler

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Whatever can run one batch: a device, a pipeline of devices, or a fake in a test."""

    def run(self, batch: Batch) -> list[Sampled]:
        """One result for each row, in order."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine now, and its counters since it was made. `kv_usage` is the share of blocks held, 0 to 1."""

    running: int
    waiting: int
    kv_usage: float
    num_blocks: int
    num_free_blocks: int
    block_size: int
    preemptions: int
    last_batch_tokens: int
    last_batch_rows: int
    steps: int
    failed_steps: int
    computed_tokens: int
    generated_tokens: int


class Engine:
    """Continuous batching over one executor: requests join and leave at any step."""

    def __init__(self, config: EngineConfig, executor: Executor) -> None:
        self.config = config
        self.executor = executor
        self.scheduler = Scheduler(config)
        self._requests: dict[str, Request] = {}
        self._ended: list[Output] = []
        self._arrivals = 0
        self._last_batch = Batch(())
        self._steps = self._failed_steps = self._computed_tokens = self._generated_tokens = 0

    def add(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> None:
        """Queues a request. ValueError, with the numbers, for one that this engine can never serve."""
        self._refuse_impossible(request_id, prompt, params)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self._arrivals += 1
        request = Request(request_id, prompt, params, seed=seed, arrival=self._arrivals)
        self._requests[request_id] = request
        self.scheduler.add(request)

    def _refuse_impossible(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> None:
        config = self.config
        if request_id in self._requests:
            raise ValueError(f"A request '{request_id}' is already here; choose another id.")
        if not prompt:
            raise ValueError("The prompt has no tokens; send at least one.")
        if params.max_tokens < 0:
            raise ValueError(f"max_tokens is {params.max_tokens}; it must not be negative.")
        room = config.max_model_len - len(prompt)
        if room < (1 if params.max_tokens else 0):
            raise ValueError(
                f"The prompt has {len(prompt)} tokens and the context is {config.max_model_len} tokens, "
                "the answer included; shorten the prompt."
            )
        needed = self.scheduler.pool.blocks_for(len(prompt) + min(room, params.max_tokens))
        if needed > config.num_blocks:
            raise ValueError(
                f"The prompt ({len(prompt)} tokens) and its answer (up to {min(room, params.max_tokens)}) need "
                f"{needed} KV blocks of {config.block_size} tokens and there are {config.num_blocks}; shorten the "
                "prompt, lower max_tokens or give the replica more KV cache."
            )
        if config.vocab_size:
            named = {*prompt, *params.logit_bias, *params.stop_token_ids}
            strange = [token for token in named if not 0 <= token < config.vocab_size]
            if strange:
                raise ValueError(f"Token id {strange[0]} is not in the vocabulary of {config.vocab_size} tokens.")

    def abort(self, request_id: str) -> None:
        """Ends a request at once; the next step reports it with reason "abort". One that is not here is left alone."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self.scheduler.remove(request)
            self._ended.append(Output(request_id, None, "abort"))

    def step(self) -> list[Output]:
        """One step: schedule, run, commit."""
        outputs, self._ended = self._ended, []
        batch = self.scheduler.schedule()
        self._last_batch = batch
        if not batch:
            return outputs
        outputs.extend(self._run(batch))
        for output in outputs:
            if output.finish_reason is not None:
                self._requests.pop(output.request_id, None)
        self._generated_tokens += sum(output.token_id is not None for output in outputs)
        return outputs

    def _run(self, batch: Batch) -> list[Output]:
        self._steps += 1
        try:
            results = self.executor.run(batch)
            if len(results) != len(batch.rows):
                raise RuntimeError(f"the executor gave {len(results)} results for {len(batch.rows)} rows")
        except Exception as error:
            # whatever it is, only this batch is lost, and the next one is served
            logger.exception("a batch of %d rows failed", len(batch.rows))
            self._failed_steps += 1
            return self._fail(batch, f"The model failed on this request's batch: {type(error).__name__}: {error}")
        self._computed_tokens += batch.num_tokens
        return self.scheduler.commit(batch, results)

    def _fail(self, batch: Batch, message: str) -> list[Output]:
        for row in batch.rows:
            self.scheduler.remove(self._requests[row.request_id])
        return [Output(row.request_id, None, "error", error=message) for row in batch.rows]

    @property
    def has_work(self) -> bool:
        """Whether a step would do or report something."""
        return bool(self._requests or self._ended)

    def stats(self) -> EngineStats:
        """The numbers of this moment."""
        pool = self.scheduler.pool
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            kv_usage=1 - pool.num_free / pool.num_blocks,
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            block_size=pool.block_size,
            preemptions=self.scheduler.num_preemptions,
            last_batch_tokens=self._last_batch.num_tokens,
            last_batch_rows=len(self._last_batch.rows),
            steps=self._steps,
            failed_steps=self._failed_steps,
            computed_tokens=self._computed_tokens,
            generated_tokens=self._generated_tokens,
        )

    def check(self) -> None:
        """The books balance: raises AssertionError where they do not."""
        self.scheduler.check()
        known = {request.request_id for request in [*self.scheduler.running, *self.scheduler.waiting]}
        assert known == set(self._requests), f"scheduled {sorted(known)}, known {sorted(self._requests)}"
