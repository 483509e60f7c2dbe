"""One request as the engine counts it: how many tokens it has, and how many of them are in the KV cache.

Prefill, chunked prefill, decode and recomputing after a preemption are all the same: `num_computed` catches up with
`num_tokens`. Knows nothing of text, time or tensors.
"""

from collections.abc import Sequence

from data_plane.engine.outputs import FinishReason, TokenLogprobs
from data_plane.engine.sampling import SamplingParams


class Request:
    """`tokens` is the prompt, then what was generated. `arrival` orders requests: the smaller is served first."""

    def __init__(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, *, seed: int, arrival: int
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.seed = seed
        self.arrival = arrival
        self.num_prompt = len(prompt)
        self.tokens: list[int] = list(prompt)
        self.num_computed = 0
        self.blocks: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.has_penalties = bool(params.presence_penalty or params.frequency_penalty) or params.repetition_penalty != 1
        self.output_counts: dict[int, int] = {}
        self.prompt_ids: frozenset[int] = frozenset(prompt) if params.repetition_penalty != 1 else frozenset()

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

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether some of the prompt's log-probabilities are still to be computed."""
        return self.params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt

    def append(self, token_id: int) -> None:
        """Adds a generated token."""
        self.tokens.append(token_id)
        if self.has_penalties:
            self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1
