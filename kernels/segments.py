"""Where the queries and the keys of one sequence lie in a step. Knows nothing of blocks or requests, only of slots."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Segment:
    """Queries `first_query` to `first_query + num_queries` of the batch, the last ones of a context of
    `context_length` tokens whose keys and values stand in `slots` of the cache: a slice, or indices [context_length].
    """

    first_query: int
    num_queries: int
    context_length: int
    slots: slice | Tensor
    masks: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)
    """Made by the first layer of a step, used by the others."""
