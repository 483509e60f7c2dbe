"""Chooses the tokens of a step, all rows at once on the device. Knows nothing of the model.

A random row inverts the cumulative distribution, in the vocabulary's order, at one uniform number that depends on its
seed and position alone. Nothing a row gets depends on the rows beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_plane.engine.batch import Row
from data_plane.engine.outputs import TokenLogprobs
from data_plane.execution.loaded import NUMERICAL_ERROR
from data_plane.execution.logprobs import token_logprobs
from data_plane.execution.noise import uniform
from data_plane.execution.penalties import adjust

TOP_WIDTH = 256
"""Tokens looked at first for `top_p`; a row whose share they do not reach is sorted whole (~10 times the cost)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The token of one row, or why there is none."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


class Place(NamedTuple):
    """Where a token is to be chosen: at `position` of the row's sequence."""

    row: Row
    position: int


def sample(logits: Tensor, places: Sequence[Place]) -> list[Choice]:
    """`logits` [places, vocabulary] of any float dtype; one choice for each place."""
    logits = logits.float()
    rows = [place.row for place in places]
    positions = [place.position for place in places]
    # a sum is not finite as soon as one of its terms is not, and reads the row once
    is_finite = torch.isfinite(logits.sum(-1)).tolist()
    adjusted = adjust(logits, rows)
    random_rows = [at for at, row in enumerate(rows) if row.params.temperature > 0]
    if len(random_rows) == len(rows):
        tokens = _draw(adjusted, rows, positions)
    else:
        tokens = adjusted.argmax(-1)
        if random_rows:
            where = torch.tensor(random_rows, device=logits.device)
            tokens[where] = _draw(
                adjusted[where], [rows[at] for at in random_rows], [positions[at] for at in random_rows]
            )
    token_ids: list[int] = tokens.tolist()
    described = _describe(logits, rows, token_ids)
    return [
        Choice(token, described[at]) if is_finite[at] else Choice(None, error=NUMERICAL_ERROR)
        for at, token in enumerate(token_ids)
    ]


def _describe(logits: Tensor, rows: Sequence[Row], token_ids: Sequence[int]) -> list[TokenLogprobs | None]:
    described: list[TokenLogprobs | None] = [None] * len(rows)
    asking = [at for at, row in enumerate(rows) if row.params.logprobs is not None]
    if asking:
        chosen = logits if len(asking) == len(rows) else logits[torch.tensor(asking, device=logits.device)]
        counts = [rows[at].params.logprobs or 0 for at in asking]
        entries = token_logprobs(chosen, [token_ids[at] for at in asking], counts)
        for at, entry in zip(asking, entries, strict=True):
            described[at] = entry
    return described


def _draw(logits: Tensor, rows: Sequence[Row], positions: Sequence[int]) -> Tensor:
    """A random token for each row of `logits` [rows, vocabulary], int64 [rows]."""
    temperature = _column([row.params.temperature for row in rows], logits)
    # the largest becomes 0 before the division, so that a tiny temperature cannot overflow
    weights = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1)
    weights = _keep_top(weights, rows)
    if any(row.params.min_p > 0 for row in rows):
        least = weights.amax(-1, keepdim=True) * _column([row.params.min_p for row in rows], logits)
        weights = weights.masked_fill(weights < least, 0.0)
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    points = [uniform(row.seed, position) for row, position in zip(rows, positions, strict=True)]
    target = torch.tensor(points, dtype=torch.float64).to(logits.device).unsqueeze(1) * total
    # the product may round up to the total itself, which no token reaches
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    # only where the row is not of finite numbers; it ends with an error
    return tokens.clamp_(max=logits.shape[-1] - 1)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device).unsqueeze(1)


def _keep_top(weights: Tensor, rows: Sequence[Row]) -> Tensor:
    """Zeroes what `top_k` and then `top_p` leave out; tokens as likely as the last one kept are kept too."""
    vocabulary = weights.shape[-1]
    limited = [at for at, row in enumerate(rows) if 0 < row.params.top_k < vocabulary or row.params.top_p < 1]
    if not limited:
        return weights
    width = max([TOP_WIDTH] + [row.params.top_k for row in rows if row.params.top_k < vocabulary])
    thresholds = torch.zeros((len(rows), 1), dtype=weights.dtype, device=weights.device)
    remaining = limited
    while remaining:
        where = torch.tensor(remaining, device=weights.device)
        width = min(width, vocabulary)
        found, is_enough = _thresholds(weights[where], [rows[at] for at in remaining], width)
        thresholds[where] = found
        is_done = is_enough.tolist()
        remaining = [at for at, done in zip(remaining, is_done, strict=True) if not done]
        width = vocabulary
    return weights.masked_fill(weights < thresholds, 0.0)


def _thresholds(weights: Tensor, rows: Sequence[Row], width: int) -> tuple[Tensor, Tensor]:
    """The least weight kept in each row [rows, 1], and whether the `width` likeliest tokens were enough to know."""
    vocabulary = weights.shape[-1]
    largest = weights.topk(width, dim=-1).values
    cumulative = largest.cumsum(-1, dtype=torch.float64)
    counts = [row.params.top_k if 0 < row.params.top_k < vocabulary else vocabulary for row in rows]
    top_k = torch.tensor(counts).to(weights.device).unsqueeze(1)
    last = (top_k.clamp(max=width) - 1).clamp(min=0)
    total = torch.where(top_k < vocabulary, cumulative.gather(1, last), weights.sum(-1, keepdim=True).double())
    share = torch.tensor([row.params.top_p for row in rows], dtype=torch.float64).to(weights.device).unsqueeze(1)
    goal = share * total
    kept = torch.minimum((cumulative < goal).sum(-1, keepdim=True), last)
    is_enough = (cumulative[:, -1:] >= goal) | (top_k <= width) | torch.tensor(width == vocabulary)
    return largest.gather(1, kept), is_enough.squeeze(1)
