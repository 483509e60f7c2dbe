"""How one request's tokens are chosen. Plain values; knows nothing of tensors or of text."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Names and meanings are OpenAI's and vLLM's. `temperature == 0` is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict[int, float])
    logprobs: int | None = None
    """None: no log-probabilities. n: the chosen token's, and the n most likely tokens' (0 to 20)."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens (for `echo`)."""
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
