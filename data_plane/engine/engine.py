"""Turns queued requests into tokens. Knows nothing of HTTP, text or tensors.

One thread at a time may use it. A request ends exactly once: with an output whose `finish_reason` is set.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from data_plane.engine.batch import Batch, Sampled
from data_plane.engine.config import EngineConfig
from data_plane.engine.outputs import Output
from data_plane.engine.prefix_cache import Labels
from data_plane.engine.request import Request
from data_plane.engine.sampling import SamplingParams
from data_plane.engine.scheduler import Scheduler
from data_plane.engine.shelf import CopyingExecutor, Kept, Shelf

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Whatever can run one batch: a device, a pipeline of devices, or a fake in a test."""

    def run(self, batch: Batch) -> list[Sampled]:
        """One result for each row, in order."""
        ...


@runtime_checkable
class OverlappingExecutor(Executor, Protocol):
    """One whose device leaves the host free: while a batch runs, the engine prepares the next one."""

    def run_while(self, batch: Batch, work: Callable[[], None]) -> list[Sampled]:
        """As `run`; calls `work` once, as soon as the device is busy, and returns when both are done.

        Batches run one after the other, and of `batch` nothing but its own tokens and blocks is read after `work`
        began. It may be called in another thread.
        """
        ...


@dataclass(slots=True)
class EngineStats:
    """The engine now, and its counters since it was made. `kv_usage` is the share of blocks held, 0 to 1.

    `host_s` is what the steps spent outside the executor, `executor_s` inside, and `overlapped_s` what the host did
    during the latter; `foreseen_steps` had their batch planned so. Prefix cache counters are in tokens of
    prompts. Not to be changed; unfrozen because one is made in each step.
    """

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
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    host_s: float
    executor_s: float
    overlapped_s: float
    foreseen_steps: int
    pending_prompt_tokens: int
    """Of all requests here, not computed and not cached."""
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    """Learned from the steps so far; None before there were any of the kind."""


@runtime_checkable
class LendingExecutor(Protocol):
    """One whose KV cache's memory can be used for something else meanwhile; what it held is lost."""

    def give_back(self) -> None: ...

    def take_back(self) -> None:
        """MemoryError where it is not to be had again."""
        ...


class Engine:
    """Continuous batching over one executor: requests join and leave at any step.

    `clock` gives seconds; the sizes of prompts' chunks follow from it. `secret` salts the names of cached blocks.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        clock: Callable[[], float] = time.perf_counter,
        secret: bytes | None = None,
    ) -> None:
        self.config = config
        self.executor = executor
        self.scheduler = Scheduler(config, secret or secrets.token_bytes(32))
        self._clock = clock
        self._ended: list[Output] = []
        self._arrivals = 0
        self._batch_tokens = self._batch_rows = 0
        self._steps = self._failed_steps = self._computed_tokens = self._generated_tokens = 0
        self._host_s = self._executor_s = self._overlapped_s = 0.0
        self._overlapping = executor if isinstance(executor, OverlappingExecutor) else None
        self._in_doubt: Exception | None = None
        self._copying = executor if isinstance(executor, CopyingExecutor) and executor.block_bytes else None
        self._shelf: Shelf | None = None
        self._arrived: list[Request] = []
        """Those for whom the shelf was not looked at yet."""
        self.restored_blocks = 0

    def add(
        self,
        request_id: str,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
        cache_salt: str = "",
        labels: Labels | None = None,
        made: Sequence[int] = (),
    ) -> None:
        """Queues a request. ValueError, with the numbers, for one that this engine can never serve.

        Of lower `priority` is served first; among equals the `tenant` that got least. Only requests of one tenant and
        one `cache_salt` share what is cached of their prompts. `labels`: by the number of a block of the prompt, what
        `take_changed_labels` shall call it. `made`: what another engine has generated already; this one goes on as if
        it had done so itself.
        """
        self._refuse_impossible(request_id, prompt, params)
        self._refuse_ended(prompt, params, made)
        self._arrivals += 1
        stops = params.stop_token_ids
        request = Request(
            request_id,
            self.scheduler.cache.chain(prompt, tenant, cache_salt, labels or {}),
            params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            arrival=self._arrivals,
            account=self.scheduler.ledger.open(tenant),
            tenant=tenant,
            priority=priority,
            ending_ids=stops if params.ignore_eos else stops | self.config.eos_token_ids,
            max_model_len=self.config.max_model_len,
            arrived_at=self._clock(),
        )
        request.go_on_from(made)
        self.scheduler.add(request)
        if self.scheduler.cache.has_shelf and not request.wants_prompt_logprobs:
            self._arrived.append(request)

    def _refuse_ended(self, prompt: Sequence[int], params: SamplingParams, made: Sequence[int]) -> None:
        if not made:
            return
        most = min(params.max_tokens, self.config.max_model_len - len(prompt))
        if len(made) >= most:
            raise ValueError(f"{len(made)} tokens have been generated and {most} were wanted: there is nothing to add.")
        strange = [token for token in made if not 0 <= token < (self.config.vocab_size or token + 1)]
        if strange:
            raise ValueError(f"Token id {strange[0]} is not in the vocabulary of {self.config.vocab_size} tokens.")

    def _refuse_impossible(self, request_id: str, prompt: Sequence[int], params: SamplingParams) -> None:
        config = self.config
        if request_id in self.scheduler.requests:
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
        request = self.scheduler.requests.get(request_id)
        if request is not None:
            self.scheduler.remove(request)
            self._ended.append(Output(request_id, None, "abort"))

    def step(self, meanwhile: Callable[[], None] | None = None) -> list[Output]:
        """One step: schedule, run, commit.

        An executor that can be overlapped calls `meanwhile`, perhaps in another thread, while the batch runs: what it
        adds may be in the next batch, what it aborts gets no more tokens. Others do not call it.
        """
        outputs, self._ended = self._ended, []
        began = self._clock()
        if self._arrived:
            self._bring_back()
        batch = self.scheduler.next_batch(began)
        self._batch_tokens, self._batch_rows = batch.num_tokens, len(batch.rows)
        if not batch:
            return outputs
        started = self._clock()
        results = self._run(batch, meanwhile)
        ended = self._clock()
        if self._in_doubt is not None:
            raise self._in_doubt
        if isinstance(results, str):
            return outputs + self._fail(results)
        self._note(batch, ended - started)
        made = self.scheduler.commit(batch, results, ended)
        self._generated_tokens += sum(output.token_id is not None for output in made)
        self._executor_s += ended - started
        self._host_s += self._clock() - began - (ended - started)
        return outputs + made

    def _prepare(self, batch: Batch, meanwhile: Callable[[], None] | None) -> None:
        """The host's work while `batch` runs."""
        began = self._clock()
        try:
            if meanwhile is not None:
                meanwhile()
            # no plan for those whose blocks are still to be copied in, for which the batch must have ended
            if not self._arrived:
                self.scheduler.foresee(batch, began)
        except Exception as error:  # noqa: BLE001  the step raises it: the executor must not take it for its own
            self._in_doubt = error
        self._overlapped_s += self._clock() - began

    def _run(self, batch: Batch, meanwhile: Callable[[], None] | None) -> list[Sampled] | str:
        """The results, or why there are none."""
        self._steps += 1
        try:
            if self._overlapping is None:
                results = self.executor.run(batch)
            else:
                results = self._overlapping.run_while(batch, lambda: self._prepare(batch, meanwhile))
            if len(results) != len(batch.rows):
                raise RuntimeError(f"the executor gave {len(results)} results for {len(batch.rows)} rows")
        except Exception as error:
            # whatever it is, only this batch is lost, and the next one is served
            logger.exception("a batch of %d rows failed", len(batch.rows))
            self._failed_steps += 1
            return f"The model failed on this request's batch: {type(error).__name__}: {error}"
        return results

    def _note(self, batch: Batch, seconds: float) -> None:
        decoded = sum(1 + row.num_drafts for row in batch.rows if len(row.tokens) == 1 + row.num_drafts)
        self._computed_tokens += self._batch_tokens
        self.scheduler.times.observe(decoded, self._batch_tokens - decoded, seconds)

    def _fail(self, message: str) -> list[Output]:
        failed = self.scheduler.in_flight
        for request in failed:
            self.scheduler.remove(request)
        return [Output(request.request_id, None, "error", error=message) for request in failed]

    def _bring_back(self) -> None:
        arrived, self._arrived = self._arrived, []
        for request in arrived:
            if self.scheduler.requests.get(request.request_id) is request:
                self.restored_blocks += self.scheduler.cache.bring_back(request.chain, self._load)

    def _load(self, kept: Kept, block: int) -> bool:
        content = None if self._shelf is None else self._shelf.read(kept.name)
        if content is None or self._copying is None:
            self.use_shelf(None)
            return False
        self._copying.copy_in(block, content)
        return True

    def use_shelf(self, shelf: Shelf | None) -> None:
        """Requests that begin like what lies there go on from it. ValueError where it is named under another secret."""
        if shelf is not None and shelf.secret != self.scheduler.cache.secret:
            raise ValueError("This shelf's blocks are named under another secret than this engine's.")
        self._shelf = shelf if self._copying is not None else None
        self.scheduler.cache.shelve(() if self._shelf is None else self._shelf.kept)

    def hold_hottest(self, most: int) -> list[tuple[Kept, int | None]]:
        """At most so many blocks, those worth most, on the shelf (None) or in the cache: these stay what they are until
        `let_go` is called with them."""
        found = self.scheduler.cache.hottest(most)
        self.scheduler.pool.share(block for _, block in found if block is not None)
        return found

    def let_go(self, blocks: Sequence[int]) -> None:
        """The other end of `hold_hottest`."""
        self.scheduler.pool.free(blocks)

    def give_back(self) -> None:
        """Lets go of the KV cache's memory, where the executor can. ValueError while there are requests."""
        if self.scheduler.requests:
            raise ValueError(f"{len(self.scheduler.requests)} requests use the KV cache; let them end first.")
        self.scheduler.cache.withdraw(sorted(self.scheduler.pool.kept))
        if isinstance(self.executor, LendingExecutor):
            self.executor.give_back()

    def take_back(self) -> None:
        """Has it again; before any request is added. MemoryError."""
        if isinstance(self.executor, LendingExecutor):
            self.executor.take_back()

    @property
    def has_work(self) -> bool:
        """Whether a step would do or report something."""
        return bool(self.scheduler.requests or self._ended)

    def take_changed_labels(self) -> dict[int, bool]:
        """Labels whose blocks can be found now (True), or no longer, and could not, or could, when this was asked."""
        return self.scheduler.cache.take_changed()

    def stats(self) -> EngineStats:
        """The numbers of this moment."""
        scheduler = self.scheduler
        pool = scheduler.pool
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_usage=1 - pool.num_free / pool.num_blocks,
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            block_size=pool.block_size,
            preemptions=scheduler.num_preemptions,
            last_batch_tokens=self._batch_tokens,
            last_batch_rows=self._batch_rows,
            steps=self._steps,
            failed_steps=self._failed_steps,
            computed_tokens=self._computed_tokens,
            generated_tokens=self._generated_tokens,
            prefix_cache_queries=scheduler.cache.num_queried,
            prefix_cache_hits=scheduler.cache.num_hit,
            num_drafts=scheduler.num_guesses,
            num_draft_tokens=scheduler.num_guessed,
            num_accepted_tokens=scheduler.num_right,
            host_s=self._host_s,
            executor_s=self._executor_s,
            overlapped_s=self._overlapped_s,
            foreseen_steps=scheduler.num_foreseen,
            pending_prompt_tokens=scheduler.num_pending,
            prefill_tokens_per_s=scheduler.times.prefill_tokens_per_s,
            decode_tokens_per_s=scheduler.times.decode_tokens_per_s,
        )

    def check(self) -> None:
        """The books balance: raises AssertionError where they do not."""
        self.scheduler.check()
