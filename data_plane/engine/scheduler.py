"""The token scheduler: which tokens of which requests one step computes, and what becomes of the results.

One rule: let `num_computed` of the requests catch up with their `num_tokens`, within one budget of tokens a step;
decodes first, since somebody is reading along. Knows nothing of the executor, tensors or text, and is told the time.
"""

from bisect import insort
from collections.abc import Sequence

from data_plane.engine.batch import Batch, Row, Sampled
from data_plane.engine.blocks import BlockPool
from data_plane.engine.config import EngineConfig
from data_plane.engine.outputs import Output
from data_plane.engine.pacing import StepTimes
from data_plane.engine.prefix_cache import PrefixCache
from data_plane.engine.request import Request
from data_plane.engine.rows import make_row, take_in
from data_plane.engine.speculation import Guesser
from data_plane.engine.waiting import TURNS, Ledger, WaitingQueue, order


class Scheduler:
    """Owns the queue of waiting requests, the running ones, the block pool and what is cached in it.

    `running` is ordered by rank: what is preempted is its last, and it goes back to the queue. The oldest request of
    all is in time promoted before every other, then never preempted, and so ends; hence nobody starves.
    """

    def __init__(self, config: EngineConfig, secret: bytes) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks, config.block_size)
        self.cache = PrefixCache(self.pool, secret, is_enabled=config.enable_prefix_caching)
        self.times = StepTimes()
        self.ledger = Ledger()
        self.waiting = WaitingQueue()
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}
        self.num_preemptions = 0
        self.num_pending = 0
        """Tokens of prompts that are to be computed."""
        self._turn = 0
        self.num_guesses = self.num_guessed = self.num_right = 0
        """Rows with guesses, guessed tokens, and those of them that were right."""

    def add(self, request: Request) -> None:
        """Queues a request that fits the limits of the configuration."""
        self.requests[request.request_id] = request
        self.waiting.push(request)
        found = 0 if request.wants_prompt_logprobs else len(self.cache.match(request.chain))
        self._owe(request, request.num_prompt - found * self.pool.block_size)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is, and frees its blocks. It leaves between two steps, never within one."""
        del self.requests[request.request_id]
        self._owe(request, 0)
        self.ledger.close(request.account)
        if request.is_running:
            self.running.remove(request)
            self._release(request)
        else:
            self.waiting.remove(request)

    def _owe(self, request: Request, num_tokens: int) -> None:
        """So many tokens of its prompt are to be computed; a request that waits counts those not cached when it came.

        What a preempted one has to compute again is not counted: most of it is still cached.
        """
        num_tokens = max(num_tokens, 0)
        self.num_pending += num_tokens - request.num_owed
        request.num_owed = num_tokens

    def _release(self, request: Request) -> None:
        request.is_running = False
        self.pool.free(request.blocks)
        request.blocks = []

    def schedule(self, now: float) -> Batch:
        """The next batch; an empty one when there is no work."""
        self._turn = (self._turn + 1) % TURNS
        preemptions_before = self.num_preemptions
        decoding = self._decoding()
        budget = self._prompt_budget(len(decoding))
        # room that a preemption made is for those that run already
        may_admit = budget > 0 and self.num_preemptions == preemptions_before
        prompts: list[Row] = []
        for request in self._prefilling(may_admit, now):
            if budget:
                prompts.append(make_row(request, min(budget, request.num_remaining)))
                budget -= len(prompts[-1].tokens)
        while budget and may_admit and (admitted := self._admit(now)):
            prompts.append(make_row(admitted, min(budget, admitted.num_remaining)))
            budget -= len(prompts[-1].tokens)
        rows = [make_row(request, 1) for request in decoding] if prompts else self._guessing_rows(decoding)
        return Batch((*rows, *prompts))

    def _decoding(self) -> list[Request]:
        """The requests that lack one token, each with a block for it."""
        found: list[Request] = []
        size = self.pool.block_size
        # a copy: `_make_room` takes preempted requests out of `running`
        for request in [r for r in self.running if len(r.tokens) - r.num_computed == 1]:
            if not request.is_running:
                continue
            if len(request.tokens) <= len(request.blocks) * size or self._make_room(request):
                found.append(request)
        return found

    def _prompt_budget(self, num_decoding: int) -> int:
        rest = self.config.max_num_batched_tokens - num_decoding
        return self.times.chunk(num_decoding, rest, self.config.max_itl_growth) if num_decoding else rest

    def _prefilling(self, may_admit: bool, now: float) -> list[Request]:
        """The requests with a prompt to compute, in their order; newcomers among them that go before one of these."""
        found = [r for r in self.running if len(r.tokens) - r.num_computed > 1]
        if not found:
            return found
        last = max(order(request) for request in found)
        while may_admit and self.waiting and order(self.waiting.head) < last and (admitted := self._admit(now)):
            found.append(admitted)
        # now and then the oldest goes first here too, or better ones could keep it waiting in the middle of its prompt
        found.sort(key=order if self._turn else lambda request: request.arrival)
        return found

    def _make_room(self, request: Request) -> bool:
        """Sees that the next token has a block, preempting lower ranks; False if it preempted `request` itself."""
        missing = self.pool.blocks_for(len(request.tokens)) - len(request.blocks)
        while self.pool.num_free < missing:
            last = self.running.pop()
            self._release(last)
            last.num_computed = 0
            last.num_preemptions += 1
            self.waiting.push(last)
            self.num_preemptions += 1
            if last is request:
                return False
        request.blocks += self.pool.allocate(missing)
        return True

    def _admit(self, now: float) -> Request | None:
        """Moves the head of the queue to the running ones if it may run and all its tokens have room.

        Nobody overtakes it: a long prompt would otherwise wait for as long as short ones keep coming.
        """
        if not self.waiting or len(self.running) >= self.config.max_num_seqs:
            return None
        request = self.waiting.head
        # log-probabilities of the prompt need all of it computed
        cached = [] if request.wants_prompt_logprobs else self.cache.match(request.chain)
        if not request.wants_prompt_logprobs and self._is_being_computed(request, len(cached)):
            return None
        missing = self.pool.blocks_for(request.num_tokens) - len(cached)
        taken = missing + sum(not self.pool.is_held(block) for block in cached)
        # one spare block for each running request, or the newcomer would be preempted within the next few steps
        if self.pool.num_free < taken + len(self.running):
            return None
        assert self.waiting.pop() is request
        self.pool.share(cached)
        request.blocks = cached + self.pool.allocate(missing)
        self.cache.adopt(request.chain, cached)
        request.num_computed = len(cached) * self.pool.block_size
        request.is_running = True
        self._owe(request, request.num_prompt - request.num_computed)
        insort(self.running, request, key=lambda other: other.rank)
        if request.started_at is None:
            request.started_at = now
            request.cached_tokens = min(request.num_computed, request.num_prompt)
            if not request.wants_prompt_logprobs:
                self.cache.num_queried += request.num_prompt
                self.cache.num_hit += request.cached_tokens
        return request

    def _is_being_computed(self, request: Request, at: int) -> bool:
        """Whether block `at` of `request`, which is not cached, is just being computed for another: then it waits.

        That is a step or few, and of many that come at once with one beginning only the first computes it.
        """
        if not self.config.enable_prefix_caching or (at + 1) * self.pool.block_size >= request.num_tokens:
            return False
        name = request.chain.name(at)
        return any(
            other.chain.num_entered <= at < other.num_tokens // self.pool.block_size and other.chain.name(at) == name
            for other in self.running
            if other.num_remaining > 1
        )

    def _guessing_rows(self, decoding: Sequence[Request]) -> list[Row]:
        """Rows of one token, and of guesses at the next ones where there is room and they pay."""
        config = self.config
        room = min(config.max_speculative_batch, config.max_num_batched_tokens) - len(decoding)
        if room <= 0 or not config.num_speculative_tokens:
            return [make_row(request, 1) for request in decoding]
        most = min(config.num_speculative_tokens, max(1, room // len(decoding))) if decoding else 0
        rows: list[Row] = []
        for request in decoding:
            guesses = self._guesses(request, min(most, room))
            room -= len(guesses)
            rows.append(make_row(request, 1, guesses))
        return rows

    def _guesses(self, request: Request, most: int) -> list[int]:
        if request.has_penalties or request.wants_prompt_logprobs or request.num_tokens < request.fixed_length:
            return []
        # the token that comes in any case is the last one wanted at the latest
        most = min(most, request.max_length - request.num_tokens - 1)
        if most <= 0:
            return []
        if request.guesser is None:
            request.guesser = Guesser(request.tokens)
        guesses = request.guesser.guess(most)
        if guesses:
            missing = self.pool.blocks_for(request.num_tokens + len(guesses)) - len(request.blocks)
            if missing > self.pool.num_free - len(self.running):
                return []  # nobody is to be preempted for a guess
            if missing > 0:
                request.blocks += self.pool.allocate(missing)
        return guesses

    def commit(self, batch: Batch, results: Sequence[Sampled], now: float) -> list[Output]:
        """Enters the results of `batch` into its requests and says what came of each. Ended ones leave."""
        outputs: list[Output] = []
        size = self.pool.block_size
        for row, result in zip(batch.rows, results, strict=True):
            request = self.requests[row.request_id]
            request.account.served += len(row.tokens)
            outputs += take_in(request, row, result, now)
            if request.num_owed:
                self._owe(request, request.num_prompt - request.num_computed)
            if result.error is not None:
                self.cache.withdraw(request.blocks)
            elif request.num_computed // size > request.chain.num_entered:
                self.cache.enter(request.chain, request.blocks, request.num_computed)
            if row.num_drafts and result.tokens:
                self._learn(request, row.num_drafts, len(result.tokens) - 1, batch)
            if request.finish_reason is not None:
                self.remove(request)
        return outputs

    def _learn(self, request: Request, num_guessed: int, num_right: int, batch: Batch) -> None:
        self.num_guesses += 1
        self.num_guessed += num_guessed
        self.num_right += num_right
        if request.guesser is not None:
            price = self.times.price(len(batch.rows))
            request.guesser.learn(num_guessed, num_right, price, self.config.num_speculative_tokens)

    def check(self) -> None:
        """The books balance, and exactly the running requests hold blocks, each enough for what it computed."""
        self.pool.check([request.blocks for request in self.running])
        self.cache.check()
        self.waiting.check()
        self.ledger.check(self.requests.values())
        for request in self.running:
            room = len(request.blocks) * self.config.block_size
            assert room >= request.num_computed, f"{request.request_id} has room for {room} tokens and computed more"
        assert not any(request.blocks for request in self.waiting), "a waiting request holds blocks"
        assert all(request.is_running for request in self.running), "a running request is not marked as such"
        ranks = [request.rank for request in self.running]
        assert ranks == sorted(ranks), f"running requests are out of their ranks' order: {ranks}"
        owed = sum(request.num_owed for request in self.requests.values())
        assert owed == self.num_pending, f"{self.num_pending} prompt tokens are pending and {owed} are owed"
        scheduled = {request.request_id for request in [*self.running, *self.waiting]}
        assert scheduled == set(self.requests), f"scheduled {sorted(scheduled)}, known {sorted(self.requests)}"
