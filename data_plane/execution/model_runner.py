"""Runs batches on one device: packs the rows, runs the model, chooses tokens. Knows nothing of queues or of text."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data_plane.engine.batch import Batch, Row, Sampled, Token
from data_plane.engine.outputs import TokenLogprobs
from data_plane.execution.inputs import pack
from data_plane.execution.loaded import NUMERICAL_ERROR
from data_plane.execution.logprobs import token_logprobs
from data_plane.execution.sampler import Choice, Place, sample
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
        self._cache_bytes = 0
        first = caches[0]
        self.block_bytes = len(caches) * block_size * first[0].numel() * first.element_size() if len(first) else 0

    @property
    def kv_form(self) -> str:
        """See `CopyingExecutor`."""
        first, cuda = self.caches[0], self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if cuda else f"cpu, {torch.get_num_threads()} threads"
        shape = f"{len(self.caches)}x{tuple(first.shape[1:])}x{self.block_size} {first.dtype}"
        return f"torch {torch.__version__}, {where}, {shape}"

    def copy_out(self, block: int) -> bytes:
        """What a block holds: layer after layer."""
        slots = slice(block * self.block_size, (block + 1) * self.block_size)
        whole = torch.stack([cache[slots] for cache in self.caches]).cpu()
        return whole.view(torch.uint8).numpy().tobytes()

    def copy_in(self, block: int, content: bytes) -> None:
        """Makes a block hold what `copy_out` gave."""
        slots = slice(block * self.block_size, (block + 1) * self.block_size)
        first = self.caches[0][slots]
        whole = torch.frombuffer(bytearray(content), dtype=first.dtype).reshape(len(self.caches), *first.shape)
        for cache, layer in zip(self.caches, whole, strict=True):
            cache[slots].copy_(layer)

    def give_back(self) -> None:
        """Frees the cache's memory; its tensors stay, without any."""
        storage = self.caches[0].untyped_storage()
        self._cache_bytes = storage.nbytes() or self._cache_bytes
        storage.resize_(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def take_back(self) -> None:
        """MemoryError where the device has not as much any more."""
        try:
            self.caches[0].untyped_storage().resize_(self._cache_bytes)
        except RuntimeError as error:
            raise MemoryError(f"The KV cache of {self._cache_bytes} bytes is not to be had again: {error}") from error

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Sampled]:
        """One result for each row, in order."""
        inputs = pack(batch, self.block_size, self.device)
        hidden = self.model.forward(inputs.token_ids, inputs.positions, inputs.slots, inputs.segments, self.caches)
        prompts: list[Sequence[TokenLogprobs]] = []
        first = 0
        asking: list[int] = []
        places: list[Place] = []
        for row in batch.rows:
            start = first + row.num_skipped_targets
            prompts.append(self._prompt_logprobs(hidden[start : start + len(row.prompt_targets)], row))
            first += len(row.tokens)
            if row.wants_token:
                asking.extend(range(first - 1 - row.num_drafts, first))
                places.extend(Place(row, position) for position in range(row.stop - row.num_drafts, row.stop + 1))
        choices = self._choose(hidden, asking, places)
        results: list[Sampled] = []
        taken = 0
        for row, prompt in zip(batch.rows, prompts, strict=True):
            count = 1 + row.num_drafts if row.wants_token else 0
            results.append(_result(row, choices[taken : taken + count], prompt))
            taken += count
        return results

    def _choose(self, hidden: Tensor, asking: Sequence[int], places: Sequence[Place]) -> list[Choice]:
        if not places:
            return []
        # a batch of decodes needs all its rows: nothing is picked out
        if len(asking) < hidden.shape[0]:
            hidden = hidden[torch.tensor(asking, device=self.device)]
        return sample(self.model.logits(hidden), places)

    def _prompt_logprobs(self, hidden: Tensor, row: Row) -> list[TokenLogprobs]:
        count = row.params.prompt_logprobs or 0
        entries: list[TokenLogprobs] = []
        for start in range(0, hidden.shape[0], PROMPT_LOGITS_ROWS):
            targets = row.prompt_targets[start : start + PROMPT_LOGITS_ROWS]
            logits = self.model.logits(hidden[start : start + PROMPT_LOGITS_ROWS])
            entries.extend(token_logprobs(logits, targets, [count] * len(targets)))
        return entries


def _result(row: Row, choices: Sequence[Choice], prompt: Sequence[TokenLogprobs]) -> Sampled:
    """`choices`: one for the row's own next token and one after each guess; they count up to the first wrong guess."""
    if not all(math.isfinite(entry.logprob) for entry in prompt):
        return Sampled(error=NUMERICAL_ERROR)
    guesses = row.tokens[len(row.tokens) - row.num_drafts :]
    tokens: list[Token] = []
    for at, choice in enumerate(choices):
        if choice.token_id is None:
            return Sampled(error=choice.error)
        tokens.append(Token(choice.token_id, choice.logprobs))
        if at < len(guesses) and guesses[at] != choice.token_id:
            break
    return Sampled(tuple(tokens), tuple(prompt))
