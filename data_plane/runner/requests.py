"""From a parsed request to what the engine is asked for each choice, checked against the model's limits."""

import secrets
from collections.abc import Sequence

from data_plane.engine.sampling import SamplingParams
from data_plane.runner.served import ServedModel
from data_plane.wire.errors import ApiError, invalid
from data_plane.wire.openai import GenerationRequest

_SEED_STEP = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: seeds of choices land far from each other, and from the next request's."""
_SEED_MASK = 2**63 - 1


def room_for(served: ServedModel, prompt: Sequence[int], limit: int | None, *, param: str, limit_param: str) -> int:
    """How many tokens may be made after `prompt`. ApiError 400, with the numbers, where it does not fit the context.

    A `limit` that the client gave is kept or refused, never silently cut; None takes all the room there is.
    """
    size, context = len(prompt), served.max_model_len
    if not size:
        raise invalid("The prompt has no tokens. Send at least one character.", param, "empty_prompt")
    room = context - size
    if room < (0 if limit == 0 else 1):
        raise context_exceeded(
            f"This model's context is {context} tokens and the prompt has {size}. Shorten the prompt.", param
        )
    if limit is None:
        return room
    if limit > room:
        raise context_exceeded(
            f"This model's context is {context} tokens; the prompt has {size} and {limit_param} asks for {limit} more, "
            f"{size + limit} in all. Lower {limit_param} to {room} or less.",
            limit_param,
        )
    return limit


def context_exceeded(message: str, param: str) -> ApiError:
    """400 with the code that clients look for to cut their history."""
    return invalid(message, param, "context_length_exceeded")


def check_tokens(served: ServedModel, tokens: Sequence[int], param: str) -> None:
    """ApiError 400 where a token id is outside the vocabulary."""
    strange = next((token for token in tokens if not 0 <= token < served.vocab_size), None)
    if strange is not None:
        raise invalid(
            f"'{param}' names token {strange}; this model's vocabulary has ids 0 to {served.vocab_size - 1}.",
            param,
            "invalid_value",
        )


def sampling(
    request: GenerationRequest,
    served: ServedModel,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> list[SamplingParams]:
    """One set of parameters per choice: equal but for their seeds."""
    check_tokens(served, list(request.bias), "logit_bias")
    check_tokens(served, request.stop_token_ids or [], "stop_token_ids")
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(
            f"'min_tokens' ({min_tokens}) is more than the {max_tokens} tokens that may be made.",
            "min_tokens",
            "invalid_value",
        )
    seed = secrets.randbits(63) if request.seed is None else request.seed
    return [
        SamplingParams(
            max_tokens=max_tokens,
            temperature=_default(request.temperature, 1.0),
            top_p=_default(request.top_p, 1.0),
            top_k=max(0, request.top_k or 0),
            min_p=request.min_p or 0.0,
            seed=(seed + choice * _SEED_STEP) & _SEED_MASK,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            repetition_penalty=_default(request.repetition_penalty, 1.0),
            logit_bias=request.bias,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            stop_token_ids=frozenset(request.stop_token_ids or ()),
            ignore_eos=bool(request.ignore_eos),
            min_tokens=min_tokens,
        )
        for choice in range(request.choices)
    ]


def _default(value: float | None, default: float) -> float:
    return default if value is None else value
