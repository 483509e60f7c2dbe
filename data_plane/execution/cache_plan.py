"""How large the KV cache is. Knows nothing of its memory, nor of who holds which block; imports no torch."""

from dataclasses import dataclass

import psutil

CPU_SHARE = 0.25
"""Of the memory that is available: other replicas live on the machine too."""
CPU_ENOUGH_BYTES = 1 << 30
"""What a replica on a CPU takes without being told to, unless one full context needs more: a prefix cache fills all it
is given sooner or later, and a laptop has other things to do. `kv_cache_bytes` says otherwise."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """`num_blocks` blocks; `max_model_len` tokens are what the model may use of them."""

    num_blocks: int
    max_model_len: int


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
    return CachePlan(num_blocks, min(max_model_len, num_blocks * block_size))


def free_cpu_bytes(bytes_per_token: int, max_model_len: int) -> int:
    """What a replica on a CPU may take for its cache when nobody says how much."""
    enough = max(CPU_ENOUGH_BYTES, bytes_per_token * max_model_len)
    return min(enough, int(psutil.virtual_memory().available * CPU_SHARE))
