"""The memory of the torch path's KV cache. Knows nothing of who holds which block."""

import torch
from torch import Tensor

from data_plane.execution.cache_plan import free_cpu_bytes

CUDA_SHARE = 0.9
"""Of what is free after the weights; the rest is for activations."""


def free_memory_bytes(device: torch.device, bytes_per_token: int, max_model_len: int) -> int:
    """What a replica may take for its cache when nobody says how much."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * CUDA_SHARE)
    return free_cpu_bytes(bytes_per_token, max_model_len)


def allocate_cache(
    slots: int, *, num_layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """A view [slots, 2, KV heads, D] for each layer, a slot a token. Not cleared: pages are taken when first used."""
    whole = torch.empty((num_layers, slots, 2, kv_heads, head_dim), dtype=dtype, device=device)
    return list(whole.unbind(0))
