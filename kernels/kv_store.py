"""Writes the keys and values of a step into the paged cache. cache[slots[t]] = kv[t]."""

from torch import Tensor


def store_kv_(cache: Tensor, kv: Tensor, slots: Tensor) -> None:
    """`cache` [slots, 2, KV heads, D], `kv` [T, 2, KV heads, D], `slots` int64 [T], each slot once."""
    cache.index_copy_(0, slots, kv)
