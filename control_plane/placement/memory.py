"""How much memory a replica will take. Pure; knows nothing of nodes, rows or what is free.

Weights are what the artifact has in bytes, scaled where the replica computes in a wider or narrower type. The KV cache
is what `concurrency` sequences of full context would need, capped: paged blocks are shared, and few requests are long.
"""

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]

MIB = 1 << 20
GIB = 1 << 30
RUNTIME_BYTES: dict[DeviceKind, int] = {"cpu": 300 * MIB, "cuda": 900 * MIB}
"""Interpreter, torch and activations: on CPU the resident set of a runner without weights, on CUDA its context."""
KV_CAP_BYTES: dict[DeviceKind, int] = {"cpu": 1 * GIB, "cuda": 16 * GIB}
"""No replica gets more KV cache than this, unless one sequence of full context needs it."""
BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """What the catalog knows of an artifact. `kv_bytes_per_token` is for values of `dtype`'s width."""

    artifact_bytes: int
    kv_bytes_per_token: int
    dtype: str


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for."""

    weights_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.runtime_bytes


def estimate(size: ModelSize, *, context: int, concurrency: int, dtype: str, kind: DeviceKind) -> Estimate:
    """What one replica of `concurrency` sequences of up to `context` tokens takes on a device of `kind`."""
    stored = BYTES_PER_VALUE.get(size.dtype, 2)
    # a runner that chooses by itself computes in float32 on a CPU at worst
    widest = 4 if kind == "cpu" else stored
    computed = BYTES_PER_VALUE.get(dtype, widest)
    one_sequence = size.kv_bytes_per_token * context * computed // stored
    kv = min(one_sequence * concurrency, max(KV_CAP_BYTES[kind], one_sequence))
    return Estimate(size.artifact_bytes * computed // stored, kv, RUNTIME_BYTES[kind])


def human(count: int) -> str:
    """Bytes for a sentence: `9.6 GiB`, `310 MiB`."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
