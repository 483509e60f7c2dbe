"""One request as the engine counts it: how many tokens it has, and how many of them are in the KV cache.

Prefill, chunked prefill, decode and recomputing after a preemption are all the same: `num_computed` catches up with
`num_tokens`. Knows nothing of text or tensors; times are whatever clock its owner reads.
"""

import math

from data_plane.engine.outputs import FinishReason, TokenLogprobs
from data_plane.engine.prefix_cache import Chain
from data_plane.engine.sampling import SamplingParams
from data_plane.engine.speculation import Guesser


class Account:
    """What one tenant was served, in tokens, and how many requests it has here."""

    __slots__ = ("num_requests", "served")

    def __init__(self) -> None:
        self.served = 0
        self.num_requests = 0


class Request:
    """`tokens` is the prompt, then what was generated. It is the list of `chain`, which is new and this request's own.

    `arrival` counts requests; `arrived_at` is a time.
    """

    __slots__ = (
        "account",
        "arrival",
        "arrived_at",
        "blocks",
        "cached_tokens",
        "chain",
        "ending_ids",
        "finish_reason",
        "fixed_length",
        "guesser",
        "has_penalties",
        "is_running",
        "max_length",
        "num_computed",
        "num_owed",
        "num_preemptions",
        "num_prompt",
        "output_counts",
        "params",
        "prompt_ids",
        "prompt_logprobs",
        "rank",
        "request_id",
        "seed",
        "started_at",
        "tenant",
        "tokens",
        "wants_prompt_logprobs",
    )

    def __init__(
        self,
        request_id: str,
        chain: Chain,
        params: SamplingParams,
        *,
        seed: int,
        arrival: int,
        account: Account,
        tenant: str = "",
        priority: int = 0,
        ending_ids: frozenset[int] = frozenset(),
        max_model_len: int,
        arrived_at: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.seed = seed
        self.arrival = arrival
        self.account = account
        self.tenant = tenant
        self.rank: tuple[float, int] = (priority, arrival)
        """The smaller goes first and is preempted last."""
        self.ending_ids = ending_ids
        """Tokens that end it once it has `min_tokens`."""
        self.chain = chain
        self.tokens = chain.tokens
        self.num_prompt = len(self.tokens)
        self.num_computed = 0
        self.num_owed = 0
        """Tokens of the prompt that its scheduler counts as still to be computed."""
        self.num_preemptions = 0
        self.cached_tokens = 0
        """Of the prompt, those that were in the KV cache when it first ran."""
        self.is_running = False
        self.blocks: list[int] = []
        self.guesser: Guesser | None = None
        self.finish_reason: FinishReason | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.wants_prompt_logprobs = params.prompt_logprobs is not None
        """Whether some of the prompt's log-probabilities are still to be computed."""
        self.fixed_length = self.num_prompt + params.min_tokens
        """While it has fewer tokens its next one must not end it."""
        self.max_length = min(self.num_prompt + params.max_tokens, max_model_len)
        """With so many tokens it ends."""
        self.has_penalties = bool(params.presence_penalty or params.frequency_penalty) or params.repetition_penalty != 1
        self.output_counts: dict[int, int] = {}
        self.prompt_ids: frozenset[int] = frozenset(self.tokens) if params.repetition_penalty != 1 else frozenset()
        self.arrived_at = arrived_at
        self.started_at: float | None = None
        """When its first tokens were first scheduled."""

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.tokens)

    @property
    def num_output(self) -> int:
        """Generated tokens."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens that are not in the KV cache yet: 1 for a request that decodes."""
        return len(self.tokens) - self.num_computed

    def promote(self) -> None:
        """From now on it goes before every priority: it has been overtaken long enough."""
        self.rank = (-math.inf, self.arrival)
