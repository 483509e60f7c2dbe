"""How large the inputs of a model's matrices get on a text that is not the gate's. Knows nothing of quantizing."""

from itertools import accumulate
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from data_plane.evaluation.text import calibration_tokens
from data_plane.layers.attention import Step
from data_plane.models import placing
from data_plane.models.llama import Llama
from data_plane.weights.artifact import open_artifact
from data_plane.weights.layout import parse_config
from data_plane.weights.mapped import read_tokenizer_files
from kernels import ops


def input_ranges(folder: Path, device: str) -> dict[str, Tensor]:
    """For each matrix behind a norm or an activation function, by name, the largest magnitude of each of its input
    channels over the calibration texts: float32 [in], on the CPU. `folder` is an unquantized artifact.
    """
    artifact = open_artifact(folder)
    config = parse_config(artifact.config)
    tokenizer = Tokenizer.from_str(read_tokenizer_files(folder)[0].decode())
    prompts = calibration_tokens(tokenizer, vocab_size=config.vocab_size)
    prompts = [ids[: config.max_position_embeddings] for ids in prompts]
    place = torch.device(device)
    tensors = placing.place(config, artifact.tensors, place, torch.float32)
    return _observe(Llama(config, tensors, max(map(len, prompts), default=1)), prompts, place) if prompts else {}


@torch.inference_mode()
def _observe(model: Llama, prompts: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    config = model.config
    lengths = [len(ids) for ids in prompts]
    starts = [0, *accumulate(lengths)]
    slots = torch.arange(starts[-1], device=device)
    segments = [
        ops.Segment(first, length, length, slice(first, first + length))
        for first, length in zip(starts, lengths, strict=False)
    ]
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    step = Step(*model.rotary(positions), slots, segments)
    x = model.embed(torch.tensor([token for ids in prompts for token in ids], device=device))
    cache = torch.empty(starts[-1], 2, config.num_kv_heads, config.head_dim, dtype=x.dtype, device=device)
    seen: dict[str, Tensor] = {}
    for at, layer in enumerate(model.layers):
        y = layer.attn_norm(x)
        x = x + layer.attention(y, cache, step)
        z = layer.mlp_norm(x)
        inner = ops.silu_mul(layer.mlp.gate_up(z))
        x = x + layer.mlp.down(inner)
        for name, inputs in (("attention.qkv", y), ("mlp.gate_up", z), ("mlp.down", inner)):
            seen[f"layers.{at}.{name}.weight"] = _largest(inputs)
    if not config.tie_word_embeddings:
        seen["lm_head.weight"] = _largest(model.norm(x))
    return seen


def _largest(inputs: Tensor) -> Tensor:
    return inputs.abs().amax(dim=0).float().cpu()
