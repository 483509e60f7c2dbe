"""A request as a row of a batch, and a row's result as a change of its request. Knows nothing of queues or blocks."""

from collections.abc import Sequence

from data_plane.engine.batch import Row, Sampled
from data_plane.engine.outputs import FinishReason, Output, Start
from data_plane.engine.request import Request

_NONE: frozenset[int] = frozenset()


def make_row(request: Request, count: int, guesses: Sequence[int] = ()) -> Row:
    """The next `count` tokens of `request`, and `guesses` at those after them."""
    start, stop = request.num_computed, request.num_computed + count
    tokens = request.tokens[start:stop]
    row = Row(
        request.request_id,
        [*tokens, *guesses] if guesses else tokens,
        start,
        request.blocks,
        request.params,
        request.seed,
        stop == len(request.tokens) and request.params.max_tokens > 0,
        len(guesses),
        request.ending_ids if len(request.tokens) < request.fixed_length else _NONE,
        request.output_counts if request.has_penalties else None,
        request.prompt_ids,
    )
    if request.wants_prompt_logprobs:
        # the entry of the first prompt token is None; a request that was preempted keeps those it has
        first = max(start + 1, len(request.prompt_logprobs), 1)
        row.num_skipped_targets = first - start - 1
        row.prompt_targets = request.tokens[first : min(stop + 1, request.num_prompt)]
    return row


def foresee_row(request: Request, row: Row) -> Row:
    """The row of one token after `row`, which runs and gives that token: whoever uses it first sets `tokens`."""
    return Row(
        request.request_id,
        (),
        row.stop,
        request.blocks,
        request.params,
        request.seed,
        wants_token=True,
        forbidden_ids=request.ending_ids if len(request.tokens) + 1 < request.fixed_length else _NONE,
        output_counts=request.output_counts if request.has_penalties else None,
        prompt_ids=request.prompt_ids,
    )


def take_in(request: Request, row: Row, result: Sampled, now: float) -> list[Output]:
    """Enters what `row` gave into its request; what came of it. Afterwards `finish_reason` says whether it ended."""
    if result.error is not None:
        request.finish_reason = "error"
        return [Output(request.request_id, None, "error", error=result.error)]
    # of the guesses those count that were right, one fewer than the tokens that came of them
    request.num_computed = row.start + len(row.tokens)
    if row.num_drafts:
        request.num_computed += len(result.tokens) - 1 - row.num_drafts
    if request.wants_prompt_logprobs:
        if not request.prompt_logprobs:
            request.prompt_logprobs.append(None)
        request.prompt_logprobs.extend(result.prompt_logprobs)
        request.wants_prompt_logprobs = len(request.prompt_logprobs) < request.num_prompt
    if result.tokens:
        is_first = len(request.tokens) == request.num_prompt
        outputs = _append(request, result)
    elif request.num_remaining:
        return []
    else:
        is_first = True
        request.finish_reason = "length"
        outputs = [Output(request.request_id, None, "length", cached_tokens=request.cached_tokens)]
    if is_first:
        started_at = now if request.started_at is None else request.started_at
        outputs[0].start = Start(started_at - request.arrived_at, now - started_at, request.cached_tokens)
        if request.params.prompt_logprobs is not None:
            outputs[0].prompt_logprobs = tuple(request.prompt_logprobs)
    return outputs


def _append(request: Request, result: Sampled) -> list[Output]:
    outputs: list[Output] = []
    tokens = request.tokens
    reason: FinishReason | None = None
    for token in result.tokens:
        token_id = token.token_id
        tokens.append(token_id)
        if request.has_penalties:
            request.output_counts[token_id] = request.output_counts.get(token_id, 0) + 1
        if token_id in request.ending_ids and len(tokens) > request.fixed_length:
            reason = "stop"
        elif len(tokens) >= request.max_length:
            reason = "length"
        outputs.append(Output(request.request_id, token_id, reason, token.logprobs, None, request.cached_tokens))
        if reason is not None:
            request.finish_reason = reason
            # guesses beyond the end were right, and nobody wants them
            request.num_computed = min(request.num_computed, len(tokens) - 1)
            break
    return outputs
