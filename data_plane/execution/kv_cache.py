"""How large the KV cache is, and its memory. Knows nothing of who holds which block."""

from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

CPU_SHARE = 0.25
"""Of the memory that is available: other replicas live on the machine too."""
CUDA_SHARE = 0.9
"""Of what is free after the weights; the rest is for activations."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """`num_blocks` blocks of `block_size` tokens; `max_model_len` is what the model may use of them."""

    num_blocks: int
    block_size: int
    max_model_len: int
    bytes_per_token: int


def plan_cache(
    *,
    bytes_per_token: int,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_bytes: int,
    free_bytes: int,
) -> CachePlan:
    """As many blocks as `max_num_seqs` full contexts can use, within `kv_cache_bytes` (0: within `free_bytes`).

    Where not even one full context fits, the context is cut to what does. ValueError if that is not one block.
    """
    budget = kv_cache_bytes or free_bytes
    wanted = max_num_seqs * -(-max_model_len // block_size)
    num_blocks = min(wanted, budget // (bytes_per_token * block_size))
    if num_blocks < 1:
        raise ValueError(
            f"The KV cache may have {budget} bytes and one block of {block_size} tokens takes "
            f"{bytes_per_token * block_size}; raise kv_cache_bytes or free some memory."
        )
    return CachePlan(num_blocks, block_size, min(max_model_len, num_blocks * block_size), bytes_per_token)


def free_memory_bytes(device: torch.device) -> int:
    """What a replica may take for its cache when nobody says how much."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * CUDA_SHARE)
    return int(psutil.virtual_memory().available * CPU_SHARE)


def allocate_cache(
    plan: CachePlan, *, num_layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """A view [slots, 2, KV heads, D] for each layer. Not cleared: a CPU's pages are taken as they are first used."""
    slots = plan.num_blocks * plan.block_size
    whole = torch.empty((num_layers, slots, 2, kv_heads, head_dim), dtype=dtype, device=device)
    return list(whole.unbind(0))
