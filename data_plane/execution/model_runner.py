"""Runs batches on one device: packs the rows, runs the model, chooses tokens. Knows nothing of queues or of text."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data_plane.engine.batch import Batch, Row, Sampled
from data_plane.engine.outputs import TokenLogprobs
from data_plane.execution.inputs import pack
from data_plane.execution.logprobs import token_logprobs
from data_plane.execution.sampler import NUMERICAL_ERROR, Choice, sample
from data_plane.models.registry import Model

PROMPT_LOGITS_ROWS = 64
"""Logits of a whole chunk of prompt would be 100 MB for a vocabulary of 49,152."""


class ModelRunner:
    """The engine's executor. It owns the KV cache's memory: `caches` holds [slots, 2, KV heads, D] for each layer."""

    def __init__(self, model: Model, caches: Sequence[Tensor], *, block_size: int, device: torch.device) -> None:
        self.model = model
        self.caches = caches
        self.block_size = block_size
        self.device = device

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Sampled]:
        """One result for each row, in order."""
        inputs = pack(batch, self.block_size, self.device)
        hidden = self.model.forward(inputs.token_ids, inputs.positions, inputs.slots, inputs.segments, self.caches)
        prompts: dict[int, list[TokenLogprobs]] = {}
        first = 0
        last: list[int] = []
        for at, row in enumerate(batch.rows):
            if row.prompt_targets:
                start = first + row.num_skipped_targets
                prompts[at] = self._prompt_logprobs(hidden[start : start + len(row.prompt_targets)], row)
            first += len(row.tokens)
            if row.wants_token:
                last.append(first - 1)
        choices = iter(self._choose(hidden, last, [row for row in batch.rows if row.wants_token]))
        return [
            _result(next(choices) if row.wants_token else Choice(None), prompts.get(at, []))
            for at, row in enumerate(batch.rows)
        ]

    def _choose(self, hidden: Tensor, last: Sequence[int], rows: Sequence[Row]) -> list[Choice]:
        if not rows:
            return []
        # a batch of decodes needs all its rows: nothing is picked out
        if len(last) < hidden.shape[0]:
            hidden = hidden[torch.tensor(last, device=self.device)]
        return sample(self.model.logits(hidden), rows)

    def _prompt_logprobs(self, hidden: Tensor, row: Row) -> list[TokenLogprobs]:
        count = row.params.prompt_logprobs or 0
        entries: list[TokenLogprobs] = []
        for start in range(0, hidden.shape[0], PROMPT_LOGITS_ROWS):
            targets = row.prompt_targets[start : start + PROMPT_LOGITS_ROWS]
            logits = self.model.logits(hidden[start : start + PROMPT_LOGITS_ROWS])
            entries.extend(token_logprobs(logits, targets, [count] * len(targets)))
        return entries


def _result(choice: Choice, prompt: Sequence[TokenLogprobs]) -> Sampled:
    if choice.error is not None or not all(math.isfinite(entry.logprob) for entry in prompt):
        return Sampled(error=NUMERICAL_ERROR)
    return Sampled(choice.token_id, choice.logprobs, tuple(prompt))
