"""Log-probabilities of tokens under the model's own distribution: no temperature, no penalty."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_plane.engine.outputs import TokenLogprobs


def token_logprobs(logits: Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of `logits` [rows, vocabulary]: its token's log-probability, and the `counts[row]` likeliest ones'.

    Computed in float32. Among equals the order of the likeliest is the device's.
    """
    logits = logits.float()
    normalizer = logits.logsumexp(-1, keepdim=True)
    index = torch.tensor(token_ids, dtype=torch.int64).to(logits.device).unsqueeze(1)
    own: list[float] = (logits.gather(1, index) - normalizer).squeeze(1).tolist()
    width = min(max(counts, default=0), logits.shape[-1])
    values, tokens = logits.topk(width, dim=-1)
    best: list[list[float]] = (values - normalizer).tolist()
    best_ids: list[list[int]] = tokens.tolist()
    return [
        TokenLogprobs(token, own[at], tuple(zip(best_ids[at][:count], best[at][:count], strict=True)))
        for at, (token, count) in enumerate(zip(token_ids, counts, strict=True))
    ]
