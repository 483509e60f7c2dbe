"""The token scheduler: which tokens of which requests one step computes, and what becomes of the results.

One rule: let `num_computed` of the requests catch up with their `num_tokens`, within one budget of tokens a step;
decodes first, since somebody is reading along. Knows nothing of the executor, tensors or text, and is told the time.

While a batch runs, `foresee` may plan the next one as if no request ended but those whose length is reached: blocks,
admissions and rows do not depend on which tokens come. A plan that what happened meanwhile has made worse than a new
one is dropped, and what it has allocated stays with its requests.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from data_plane.engine.batch import Batch, Row, Sampled
from data_plane.engine.blocks import BlockPool
from data_plane.engine.config import EngineConfig
from data_plane.engine.outputs import Output
from data_plane.engine.pacing import StepTimes
from data_plane.engine.prefix_cache import PrefixCache
from data_plane.engine.request import Request
from data_plane.engine.rows import foresee_row, make_row, take_in
from data_plane.engine.speculation import Guesser
from data_plane.engine.waiting import TURNS, Ledger, WaitingQueue, order


@dataclass(slots=True)
class _Plan:
    """The next batch but for the tokens that the running one gives. Without `rows`: guesses depend on these tokens."""

    decoding: list[Request]
    rows: list[Row]
    prompts: list[Row]


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
        self.num_foreseen = 0
        """Batches that were planned while the one before them ran."""
        self._turn = 0
        self._in_flight: list[Request] = []
        """The requests of the last batch, row by row; some may have been removed since."""
        self._plan: _Plan | None = None
        self.num_guesses = self.num_guessed = self.num_right = 0
        """Rows with guesses, guessed tokens, and those of them that were right."""

    def add(self, request: Request) -> None:
        """Queues a request that fits the limits of the configuration."""
        self._plan = None
        self.requests[request.request_id] = request
        found = [] if request.wants_prompt_logprobs else self.cache.match(request.chain)
        # those before it in the queue would otherwise take what it was sent here for: it is the oldest that is free
        self.pool.touch(found)
        self._owe(request, request.num_prompt - len(found) * self.pool.block_size)
        self.waiting.push(request)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is, and frees its blocks. What a running batch gives for it is dropped.

        Its blocks may go to another at once, which uses them in the next batch: batches run one after the other.
        """
        if self.waiting:
            # who waits may have its place in the very next batch
            self._plan = None
        del self.requests[request.request_id]
        if request.is_running:
            self.running.remove(request)
            self._release(request)
        else:
            self.waiting.remove(request)
        self._owe(request, 0)
        self.ledger.close(request.account)

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

    def next_batch(self, now: float) -> Batch:
        """What the next step computes; an empty batch when there is no work."""
        plan, self._plan = self._plan, None
        batch = self._schedule(now) if plan is None else self._carry_out(plan)
        self._in_flight = [self.requests[row.request_id] for row in batch.rows]
        return batch

    @property
    def in_flight(self) -> list[Request]:
        """The requests of the last batch that are still here."""
        return [request for request in self._in_flight if self._is_here(request)]

    def _is_here(self, request: Request) -> bool:
        # another may have come under the same id
        return self.requests.get(request.request_id) is request

    def _schedule(self, now: float) -> Batch:
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
        if may_admit:
            prompts += self._admit_all(budget, now)
        rows = [make_row(request, 1) for request in decoding] if prompts else self._guessing_rows(decoding)
        return Batch((*rows, *prompts))

    def foresee(self, batch: Batch, now: float) -> None:
        """While `batch` runs: what can be done for the one after it before its tokens are known."""
        self._plan = None
        size = self.pool.block_size
        if any(row.num_drafts for row in batch.rows):
            return  # how far they get is not known
        pairs = zip(batch.rows, self._in_flight, strict=True)
        rows = {row.request_id: row for row, request in pairs if request.is_running}
        decoding: list[Request] = []
        has_prompts = is_prompt_left = False
        for request in self.running:
            row = rows.get(request.request_id)
            if row is None:
                is_prompt_left = True
                continue
            has_prompts = has_prompts or request.num_remaining > 1
            if row.stop // size > request.chain.num_entered and self.config.enable_prefix_caching:
                # `commit` will want the name: hashing is done here
                request.chain.name(row.stop // size - 1)
            if not row.wants_token:
                is_prompt_left = is_prompt_left or row.stop < len(request.tokens)
            elif len(request.tokens) + 1 < request.max_length:
                decoding.append(request)
        if not self._extend(decoding) or is_prompt_left:
            return
        prompts = self._admit_all(self._prompt_budget(len(decoding)), now)
        if self.waiting and has_prompts:
            return  # the head may wait for a prompt that is just being computed, and for no longer
        if decoding or prompts:
            may_guess = not prompts and self._may_guess(len(decoding))
            foreseen = [] if may_guess else [foresee_row(request, rows[request.request_id]) for request in decoding]
            self._plan = _Plan(decoding, foreseen, prompts)

    def _extend(self, decoding: Sequence[Request]) -> bool:
        """A block for the token after the one that is being computed; False where not all of them get theirs."""
        for request in decoding:
            missing = self.pool.blocks_for(len(request.tokens) + 1) - len(request.blocks)
            if missing > self.pool.num_free:
                return False  # it takes a preemption, unless one ends and frees its own
            if missing > 0:
                # a new list: the running batch reads the old one
                request.blocks = [*request.blocks, *self.pool.allocate(missing)]
        return True

    def _carry_out(self, plan: _Plan) -> Batch:
        self._turn = (self._turn + 1) % TURNS
        self.num_foreseen += 1
        if not plan.rows and not plan.prompts:
            return Batch(tuple(self._guessing_rows([request for request in plan.decoding if request.is_running])))
        rows: list[Row] = []
        for request, row in zip(plan.decoding, plan.rows, strict=True):
            if request.is_running:
                row.tokens = request.tokens[-1:]
                rows.append(row)
        rows += [row for row in plan.prompts if row.request_id in self.requests]
        return Batch(tuple(rows))

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

    def _admit_all(self, budget: int, now: float) -> list[Row]:
        """Rows of those who wait, as many as have room, of at most `budget` tokens."""
        rows: list[Row] = []
        while budget and (admitted := self._admit(now)):
            rows.append(make_row(admitted, min(budget, admitted.num_remaining)))
            budget -= len(rows[-1].tokens)
        return rows

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
        if not self._may_guess(len(decoding)):
            return [make_row(request, 1) for request in decoding]
        config = self.config
        room = self._guessing_room(len(decoding))
        most = min(config.num_speculative_tokens, max(1, room // len(decoding))) if decoding else 0
        rows: list[Row] = []
        for request in decoding:
            guesses = self._guesses(request, min(most, room))
            room -= len(guesses)
            rows.append(make_row(request, 1, guesses))
        return rows

    def _guessing_room(self, num_decoding: int) -> int:
        return min(self.config.max_speculative_batch, self.config.max_num_batched_tokens) - num_decoding

    def _may_guess(self, num_decoding: int) -> bool:
        return self.config.num_speculative_tokens > 0 and self._guessing_room(num_decoding) > 0

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
        """Enters the results of `batch`, the last one, into its requests and says what came of each. Ended ones leave.

        Requests that were removed while it ran get nothing.
        """
        outputs: list[Output] = []
        size = self.pool.block_size
        for request, row, result in zip(self._in_flight, batch.rows, results, strict=True):
            if not self._is_here(request):
                continue
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
