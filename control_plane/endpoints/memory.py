"""How much memory a replica will take, and what of a device replicas may have. Pure; knows nothing of nodes, rows or
what is free.

On a CPU the weights count as the artifact stores them, once: quantized ones are used in place, and of plain ones, which
are repacked, the file's pages are given back. Its KV cache holds bfloat16, or float32 where that is asked for. On a GPU
plain weights and the KV cache have the width that is computed in. The KV cache is what `concurrency` sequences of full
context would need, capped: paged blocks are shared, and few requests are long. What replicas of the same artifact were
measured to take, beside their KV cache, corrects the rest.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from control_plane.catalog.quantization import DeviceKind

MIB = 1 << 20
GIB = 1 << 30
RUNTIME_BYTES: dict[DeviceKind, int] = {"cpu": 58 * MIB, "cuda": 900 * MIB}
"""Interpreter, libraries and server: on a CPU the resident set of a runner of the native decoder without a model, on
CUDA its context, torch and kernels."""
TORCH_BYTES = 210 * MIB
"""What torch adds where the native decoder does not serve: float16 on a CPU."""
TOKENIZER_BYTES = 750
"""A token of the vocabulary: its text, its merges and its bytes, in the tokenizer's tables and ours."""
STEP_TOKENS = 512
"""Tokens a step computes at most (ReplicaSpec.max_num_batched_tokens)."""
LOGIT_ROWS = 64
"""Rows of logits that are computed at a time."""
KV_CAP_BYTES: dict[DeviceKind, int] = {"cpu": 1 * GIB, "cuda": 16 * GIB}
"""No replica gets more KV cache than this, unless one sequence of full context needs it."""
USABLE: dict[DeviceKind, float] = {"cpu": 0.8, "cuda": 0.92}
"""Share of a device's memory that replicas may have; the rest is the system's, and the estimate's error."""
BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
BITS: dict[str, float] = {"none": 16.0, "int8": 8.1, "fp8": 8.1, "int4": 4.9}
"""Of one weight, by stored name, scales included: for artifacts that nobody has made yet. SmolLM2's are 16, 8.06 and
5.65 (its embedding, a fifth of it, is int8 in an int4 artifact; larger models have a smaller share)."""


@dataclass(frozen=True)
class ModelSize:
    """What the catalog knows of an artifact. `dtype` is that of what is not quantized, and `kv_bytes_per_token` is for
    values of its width; the sizes of the model's layers are 0 where they are not known."""

    artifact_bytes: int
    kv_bytes_per_token: int
    dtype: str
    is_plain: bool = True
    hidden: int = 0
    intermediate: int = 0
    vocab: int = 0


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for. `correction_bytes` is what replicas of the same were measured to take beyond what is
    estimated, or less; `one_sequence_bytes` the part of the KV cache without which not one full context runs."""

    weights_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int
    activations_bytes: int = 0
    correction_bytes: int = 0
    one_sequence_bytes: int | None = None

    @cached_property
    def fixed_bytes(self) -> int:
        """All but the KV cache: what does not depend on context or concurrency."""
        estimated = self.weights_bytes + self.runtime_bytes + self.activations_bytes
        return max(0, estimated + self.correction_bytes)

    @cached_property
    def total_bytes(self) -> int:
        return self.fixed_bytes + self.kv_cache_bytes

    @property
    def least_bytes(self) -> int:
        """With a KV cache for no more than one full context."""
        return self.fixed_bytes + min(self.kv_cache_bytes, self.one_sequence_bytes or self.kv_cache_bytes)

    def corrected(self, excess_bytes: int) -> "Estimate":
        """With what replicas of the same were measured to take beyond the estimate (negative: less)."""
        return replace(self, correction_bytes=excess_bytes)

    def within(self, usable_bytes: int) -> "Estimate":
        """With a KV cache that fits a device of so many usable bytes, where that is one full context at least."""
        room = usable_bytes - self.fixed_bytes
        least = self.kv_cache_bytes if self.one_sequence_bytes is None else self.one_sequence_bytes
        if room >= self.kv_cache_bytes or room < least:
            return self
        return replace(self, kv_cache_bytes=room)

    def parts(self) -> str:
        """For a sentence."""
        measured = self.correction_bytes
        said = [f"weights {human(self.weights_bytes)}", f"KV cache {human(self.kv_cache_bytes)}"]
        said += [f"activations {human(self.activations_bytes)}"] if self.activations_bytes else []
        said += [f"runtime {human(self.runtime_bytes)}"]
        said += [f"measured {'+' if measured > 0 else '-'}{human(abs(measured))}"] if measured else []
        return ", ".join(said)


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
    runtime = RUNTIME_BYTES[kind] + TOKENIZER_BYTES * size.vocab
    runtime += TORCH_BYTES if kind == "cpu" and dtype == "float16" else 0
    return Estimate(weights, kv, runtime, _activations(size), one_sequence_bytes=one_sequence)


def _activations(size: ModelSize) -> int:
    """Float32 rows of a step: the residual, its norm, attention's output and an MLP's two halves and their product;
    and the logits that are computed at a time."""
    rows = STEP_TOKENS * (3 * size.hidden + 3 * size.intermediate)
    return 4 * (rows + LOGIT_ROWS * size.vocab)


def sharded(size: ModelSize, ranks: int) -> ModelSize:
    """What each of `ranks` devices holds: matrices and attention heads are divided, the vocabulary's tables too."""
    return replace(
        size,
        artifact_bytes=-(-size.artifact_bytes // ranks),
        kv_bytes_per_token=-(-size.kv_bytes_per_token // ranks),
        intermediate=-(-size.intermediate // ranks),
    )


def usable_bytes(memory_bytes: int, kind: DeviceKind) -> int:
    """What of a device's memory replicas may have together."""
    return int(memory_bytes * USABLE[kind])


def human(count: int) -> str:
    """Bytes for a sentence: `9.6 GiB`, `310 MiB`, `45 KiB`."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    return f"{count / MIB:.0f} MiB" if count >= MIB else f"{count / 1024:.0f} KiB"
