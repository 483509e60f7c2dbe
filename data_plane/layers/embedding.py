"""Token ids to vectors."""

import torch
from torch import Tensor

from data_plane.layers.linear import Projection


class Embedding:
    """`table` [vocabulary, hidden] in any form; vectors come in `dtype`."""

    def __init__(self, table: Projection, dtype: torch.dtype) -> None:
        self.table = table
        self.dtype = dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        return self.table.rows(token_ids, self.dtype)
