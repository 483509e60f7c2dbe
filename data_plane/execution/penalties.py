"""Changes to the logits that a request asks for before a token is chosen: penalties, biases, forbidden ends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_plane.engine.batch import Row


def adjusts(row: Row) -> bool:
    """Whether anything is to be changed for this row."""
    return row.output_counts is not None or bool(row.params.logit_bias) or bool(row.forbidden_ids)


def adjust(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """`logits` float32 [rows, vocabulary], unchanged itself: the same tensor if no row asks for anything, else a copy.

    Repetition penalty first (a positive logit is divided by it, a negative one multiplied), on the prompt's tokens too;
    then presence and frequency penalties on generated tokens only, and the biases; forbidden tokens get -inf.
    """
    if not any(adjusts(row) for row in rows):
        return logits
    logits = logits.clone()
    _repetition(logits, rows)
    _subtract(logits, rows)
    forbidden = [(at, token) for at, row in enumerate(rows) for token in row.forbidden_ids]
    if forbidden:
        logits[_index(forbidden, logits.device)] = float("-inf")
    return logits


def _index(pairs: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    both = torch.tensor(pairs, dtype=torch.int64).t().contiguous().to(device)
    return both[0], both[1]


def _repetition(logits: Tensor, rows: Sequence[Row]) -> None:
    pairs: list[tuple[int, int]] = []
    penalties: list[float] = []
    for at, row in enumerate(rows):
        if row.params.repetition_penalty != 1:
            seen = row.prompt_ids | set(row.output_counts or ())
            pairs.extend((at, token) for token in seen)
            penalties.extend([row.params.repetition_penalty] * len(seen))
    if pairs:
        index = _index(pairs, logits.device)
        penalty = torch.tensor(penalties, dtype=logits.dtype).to(logits.device)
        before = logits[index]
        logits[index] = torch.where(before > 0, before / penalty, before * penalty)


def _subtract(logits: Tensor, rows: Sequence[Row]) -> None:
    pairs: list[tuple[int, int]] = []
    changes: list[float] = []
    for at, row in enumerate(rows):
        params = row.params
        if params.presence_penalty or params.frequency_penalty:
            for token, count in (row.output_counts or {}).items():
                pairs.append((at, token))
                changes.append(-params.presence_penalty - params.frequency_penalty * count)
        for token, bias in params.logit_bias.items():
            pairs.append((at, token))
            changes.append(bias)
    if pairs:
        change = torch.tensor(changes, dtype=logits.dtype).to(logits.device)
        logits.index_put_(_index(pairs, logits.device), change, accumulate=True)
