"""Token ids to vectors."""

import torch.nn.functional as F
from torch import Tensor


class Embedding:
    """`weight` [vocabulary, hidden]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.weight)
