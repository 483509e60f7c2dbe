"""How much memory a replica will take, and what of a device replicas may have. Pure; knows nothing of nodes, rows or
what is free.

On a CPU the weights count as the artifact stores them, once: quantized ones are used in place, plain ones are repacked
and the file's pages may go. Its KV cache holds bfloat16, or float32 where that is asked for. On a GPU plain weights and
the KV cache have the width that is computed in. The KV cache is what `concurrency` sequences of full context would
need, capped: paged blocks are shared, and few requests are long.
"""

from dataclasses import dataclass

from control_plane.catalog.quantization import DeviceKind

MIB = 1 << 20
GIB = 1 << 30
RUNTIME_BYTES: dict[DeviceKind, int] = {"cpu": 300 * MIB, "cuda": 900 * MIB}
"""Interpreter, torch and activations: on CPU the resident set of a runner without weights, on CUDA its context."""
KV_CAP_BYTES: dict[DeviceKind, int] = {"cpu": 1 * GIB, "cuda": 16 * GIB}
"""No replica gets more KV cache than this, unless one sequence of full context needs it."""
USABLE: dict[DeviceKind, float] = {"cpu": 0.8, "cuda": 0.92}
"""Share of a device's memory that replicas may have; the rest is the system's, and the estimate's error."""
BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """What the catalog knows of an artifact. `dtype` is that of what is not quantized, and `kv_bytes_per_token` is for
    values of its width."""

    artifact_bytes: int
    kv_bytes_per_token: int
    dtype: str
    is_plain: bool = True


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for."""

    weights_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.runtime_bytes


def kv_bytes_per_token(size: ModelSize, *, dtype: str, kind: DeviceKind) -> int:
    """What one token of context takes in the cache of a replica that was deployed with `dtype`."""
    stored = BYTES_PER_VALUE.get(size.dtype, 2)
    default = 2 if kind == "cpu" else stored
    return size.kv_bytes_per_token * BYTES_PER_VALUE.get(dtype, default) // stored


def estimate(size: ModelSize, *, context: int, concurrency: int, dtype: str, kind: DeviceKind) -> Estimate:
    """What one replica of `concurrency` sequences of up to `context` tokens takes on a device of `kind`."""
    one_sequence = kv_bytes_per_token(size, dtype=dtype, kind=kind) * context
    kv = min(one_sequence * concurrency, max(KV_CAP_BYTES[kind], one_sequence))
    weights = size.artifact_bytes
    if kind == "cuda" and size.is_plain:
        stored = BYTES_PER_VALUE.get(size.dtype, 2)
        weights = weights * BYTES_PER_VALUE.get(dtype, stored) // stored
    return Estimate(weights, kv, RUNTIME_BYTES[kind])


def usable_bytes(memory_bytes: int, kind: DeviceKind) -> int:
    """What of a device's memory replicas may have together."""
    return int(memory_bytes * USABLE[kind])


def human(count: int) -> str:
    """Bytes for a sentence: `9.6 GiB`, `310 MiB`, `45 KiB`."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / MIB:.0f} MiB" if count >= MIB else f"{count / 1024:.0f} KiB"
