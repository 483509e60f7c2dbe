"""The token scheduler: which tokens of which requests one step computes, and what becomes of the results.

One rule: let `num_computed` of the oldest requests catch up with their `num_tokens`, within one budget of tokens a
step; decodes first, since somebody is reading along. Knows nothing of the executor, tensors, text or time.
"""

from collections import deque
from collections.abc import Sequence

from data_plane.engine.batch import Batch, Row, Sampled
from data_plane.engine.blocks import BlockPool
from data_plane.engine.config import EngineConfig
from data_plane.engine.outputs import FinishReason, Output
from data_plane.engine.request import Request


class Scheduler:
    """Owns the queue of waiting requests, the running ones and the block pool.

    `running` is ordered by arrival and older than everything in `waiting`: what is preempted is the youngest running
    request, and it goes back to the front of the queue. So the oldest request always gets on, and nobody starves.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks, config.block_size)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0

    def add(self, request: Request) -> None:
        """Queues a request that fits the limits of the configuration."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is, and frees its blocks. It leaves between two steps, never within one."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _release(self, request: Request) -> None:
        self.pool.free(request.blocks)
        request.blocks = []

    def schedule(self) -> Batch:
        """The next batch; an empty one when there is no work."""
        rows: list[Row] = []
        preemptions_before = self.num_preemptions
        # a copy: `_make_room` takes preempted requests out of `running`
        for request in [r for r in self.running if r.num_remaining == 1]:
            if request in self.running and self._make_room(request):
                rows.append(self._row(request, 1))
        budget = self.config.max_num_batched_tokens - len(rows)
        for request in self.running:
            if budget and request.num_remaining > 1:
                rows.append(self._row(request, min(budget, request.num_remaining)))
                budget -= len(rows[-1].tokens)
        # room that a preemption made is for the older requests
        while budget and self.num_preemptions == preemptions_before and (admitted := self._admit()):
            rows.append(self._row(admitted, min(budget, admitted.num_remaining)))
            budget -= len(rows[-1].tokens)
        return Batch(tuple(rows))

    def _make_room(self, request: Request) -> bool:
        """Sees that the next token has a block, preempting younger requests; False if it preempted `request` itself."""
        missing = self.pool.blocks_for(request.num_tokens) - len(request.blocks)
        if missing <= 0:
            return True
        while self.pool.num_free < missing:
            youngest = self.running.pop()
            self._release(youngest)
            youngest.num_computed = 0
            self.waiting.appendleft(youngest)
            self.num_preemptions += 1
            if youngest is request:
                return False
        request.blocks += self.pool.allocate(missing)
        return True

    def _admit(self) -> Request | None:
        """Moves the first waiting request to the running ones if it may run and all its tokens have room.

        Nobody overtakes it: a long prompt would otherwise wait for as long as short ones keep coming.
        """
        if not self.waiting or len(self.running) >= self.config.max_num_seqs:
            return None
        request = self.waiting[0]
        needed = self.pool.blocks_for(request.num_tokens)
        # one spare block for each running request, or the newcomer would be preempted within the next few steps
        if self.pool.num_free < needed + len(self.running):
            return None
        self.waiting.popleft()
        self.running.append(request)
        request.blocks = self.pool.allocate(needed)
        return request

    def _row(self, request: Request, count: int) -> Row:
        start, stop = request.num_computed, request.num_computed + count
        is_last = stop == request.num_tokens
        targets: Sequence[int] = ()
        skipped = 0
        if request.wants_prompt_logprobs:
            # the entry of the first prompt token is None; a request that was preempted keeps those it has
            first = max(start + 1, len(request.prompt_logprobs), 1)
            skipped = first - start - 1
            targets = request.tokens[first : min(stop + 1, request.num_prompt)]
        too_short = request.num_output < request.params.min_tokens
        return Row(
            request_id=request.request_id,
            tokens=request.tokens[start:stop],
            start=start,
            blocks=request.blocks,
            params=request.params,
            seed=request.seed,
            wants_token=is_last and request.params.max_tokens > 0,
            forbidden_ids=self._ending_ids(request) if too_short else frozenset(),
            output_counts=request.output_counts if request.has_penalties else None,
            prompt_ids=request.prompt_ids,
            prompt_targets=targets,
            num_skipped_targets=skipped,
        )

    def _ending_ids(self, request: Request) -> frozenset[int]:
        stops = request.params.stop_token_ids
        return stops if request.params.ignore_eos else stops | self.config.eos_token_ids

    def commit(self, batch: Batch, results: Sequence[Sampled]) -> list[Output]:
        """Enters the results of `batch` into its requests and says what came of each. Ended ones leave."""
        requests = {request.request_id: request for request in self.running}
        outputs: list[Output] = []
        for row, result in zip(batch.rows, results, strict=True):
            request = requests[row.request_id]
            request.num_computed = row.stop
            outputs.extend(self._commit_row(request, result))
            if request.finish_reason is not None:
                self.remove(request)
        return outputs

    def _commit_row(self, request: Request, result: Sampled) -> list[Output]:
        if result.error is not None:
            request.finish_reason = "error"
            return [Output(request.request_id, None, "error", error=result.error)]
        if request.wants_prompt_logprobs:
            if not request.prompt_logprobs:
                request.prompt_logprobs.append(None)
            request.prompt_logprobs.extend(result.prompt_logprobs)
        if request.num_remaining:
            return []
        # once only: with the first token, or with the end where no token is wanted
        is_first = request.num_output == 0 and request.params.prompt_logprobs is not None
        prompt_logprobs = tuple(request.prompt_logprobs) if is_first else None
        if not result.tokens:
            request.finish_reason = "length"
            return [Output(request.request_id, None, "length", prompt_logprobs=prompt_logprobs)]
        outputs: list[Output] = []
        for token in result.tokens:
            request.append(token.token_id)
            request.finish_reason = self._reason_to_end(request, token.token_id)
            outputs.append(
                Output(
                    request.request_id,
                    token.token_id,
                    request.finish_reason,
                    logprobs=token.logprobs,
                    prompt_logprobs=prompt_logprobs,
                )
            )
            prompt_logprobs = None
            if request.finish_reason is not None:
                break
        return outputs

    def _reason_to_end(self, request: Request, token_id: int) -> FinishReason | None:
        if token_id in self._ending_ids(request) and request.num_output > request.params.min_tokens:
            return "stop"
        if request.num_output >= request.params.max_tokens or request.num_tokens >= self.config.max_model_len:
            return "length"
        return None

    def check(self) -> None:
        """The pool's books balance, and exactly the running requests hold blocks, each enough for what it computed."""
        self.pool.check([request.blocks for request in self.running])
        for request in self.running:
            room = len(request.blocks) * self.config.block_size
            assert room >= request.num_computed, f"{request.request_id} has room for {room} tokens and computed more"
        assert not any(request.blocks for request in self.waiting), "a waiting request holds blocks"
        order = [request.arrival for request in [*self.running, *self.waiting]]
        assert order == sorted(order), f"requests are out of their order of arrival: {order}"
