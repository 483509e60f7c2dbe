"""A model in the native decoder: takes plain arrays, runs steps. Knows nothing of artifacts or requests.

All arrays are numpy's; what the decoder points to is kept alive here.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kernels.cpu import library as native

Array = npt.NDArray[np.generic]
BLOCK_SIZE = 16
"""Tokens a KV block, fixed by the layout: a register holds one dimension of the keys of a block."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """A matrix [rows, columns] in tiles of 16 rows; `kind` is bfloat16, float32, int8 or int4.

    bfloat16: uint16 [tiles, ceil(columns/2), 16, 2]; float32: [tiles, columns, 16]. The quantized layouts are those of
    artifacts: int8 [tiles, columns up to 64s / 4, 16, 4] with float32 scales [16 · tiles]; int4 uint8
    [tiles, columns/32, 4, 64] with float16 scales and minima [tiles, columns/group, 16].
    """

    kind: str
    rows: int
    columns: int
    weight: Array
    scale: Array | None = None
    minimum: Array | None = None
    bias: Array | None = None

    def struct(self) -> native.Matrix:
        """As the library takes it. It borrows the arrays."""
        group = self.columns // self.scale.shape[1] if self.kind == "int4" and self.scale is not None else 0
        return native.Matrix(
            native.KINDS[self.kind],
            self.rows,
            self.columns,
            group,
            address(self.weight),
            address(self.scale),
            address(self.minimum),
            address(self.bias),
        )


@dataclass(frozen=True, slots=True)
class LayerTiles:
    """One layer; norms are float32 [hidden], `q_norm` and `k_norm` float32 [head size] or None."""

    qkv: Tiles
    o: Tiles
    gate_up: Tiles
    down: Tiles
    attn_norm: Array
    mlp_norm: Array
    q_norm: Array | None = None
    k_norm: Array | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model's; `norm` float32 [hidden], `inv_freq` of the rotary embedding, float32 [head size / 2]."""

    embed: Tiles
    lm_head: Tiles
    norm: Array
    inv_freq: Array
    layers: Sequence[LayerTiles]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model and of what is allocated for it. `num_blocks` KV blocks; `max_tokens` in one step."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    num_blocks: int
    max_tokens: int
    kv_dtype: str = "bfloat16"

    @property
    def kv_elements_per_block(self) -> int:
        """Of one layer."""
        return self.kv_heads * 2 * BLOCK_SIZE * self.head_dim


@dataclass(slots=True)
class StepSeconds:
    """Where the time of steps went, in seconds since the decoder was made."""

    matmul: float = 0.0
    attention: float = 0.0
    sampling: float = 0.0
    rest: float = 0.0


@dataclass(slots=True)
class StepResult:
    """Of each row of logits: the token (-1: its logits are not finite), its log-probability and the likeliest ones."""

    chosen: npt.NDArray[np.int32]
    logprob: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32] | None


GREEDY = (0.0, 1.0, 0.0, 1.0, 0, -1, 0.0, -1, 0, 0, 0, 0)
"""The choice of the likeliest token, as the fields of `library.Choice`."""


@dataclass(slots=True)
class StepInput:
    """One step. `rows` are (first token, tokens, position of the first, where its block ids begin in `blocks`)."""

    token_ids: Sequence[int]
    rows: Sequence[tuple[int, int, int, int]]
    blocks: Sequence[int]
    logit_tokens: Sequence[int]
    choices: Sequence[tuple[float | int, ...]]
    changes: Sequence[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    seen_ids: Sequence[int] = field(default_factory=list[int])


class Decoder:
    """Borrows `kv` and the weights' arrays; RuntimeError where there is no library or no memory.

    `kv`: zeroed bytes of layers · num_blocks · kv_elements_per_block values, on a 64-byte boundary.
    """

    def __init__(self, shape: Shape, weights: Weights, *, kv: Array, threads: int, backend: str = "") -> None:
        library = native.open_library()
        if library is None:
            raise RuntimeError("The native CPU decoder is not built; run python -m kernels.cpu.build.")
        self._library = library
        self._kept = (weights, kv)
        self._seconds = np.zeros(4, dtype=np.float64)
        self.shape = shape
        structs = (native.Layer * len(weights.layers))(*[_layer(layer) for layer in weights.layers])
        model = native.Model(
            len(weights.layers),
            shape.hidden,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.intermediate,
            shape.vocab,
            int(shape.kv_dtype == "float32"),
            shape.num_blocks,
            shape.max_tokens,
            shape.eps,
            address(weights.inv_freq),
            address(weights.norm),
            weights.embed.struct(),
            weights.lm_head.struct(),
            structs,
            address(kv),
        )
        cpus = np.array(_places(threads), dtype=np.int32)
        name = backend or os.environ.get(native.BACKEND_VARIABLE, "")
        self._handle = library.ebb_open(ctypes.byref(model), name.encode(), address(cpus), len(cpus))
        if not self._handle:
            raise RuntimeError(
                f"The native CPU decoder cannot be opened (instruction set '{name or 'any'}'): this processor "
                "lacks it, or there is not enough memory."
            )

    def close(self) -> None:
        """Ends its threads and frees its memory."""
        if self._handle:
            self._library.ebb_close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    @property
    def seconds(self) -> StepSeconds:
        """Sums over all steps so far."""
        return StepSeconds(*self._seconds.tolist())

    def step(self, work: StepInput, *, wants_logits: bool = False) -> StepResult:
        """Computes the step's tokens and chooses from the rows of logits. ValueError for more than `max_tokens`."""
        if not 0 < len(work.token_ids) <= self.shape.max_tokens:
            raise ValueError(f"A step takes 1 to {self.shape.max_tokens} tokens and was given {len(work.token_ids)}.")
        count = len(work.logit_tokens)
        result = StepResult(
            np.empty(count, dtype=np.int32),
            np.empty(count, dtype=np.float32),
            np.empty((count, native.MAX_TOP), dtype=np.int32),
            np.empty((count, native.MAX_TOP), dtype=np.float32),
            np.empty((count, self.shape.vocab), dtype=np.float32) if wants_logits else None,
        )
        tokens = np.array(work.token_ids, dtype=np.int32)
        blocks = np.array(work.blocks, dtype=np.int32)
        logit_tokens = np.array(work.logit_tokens, dtype=np.int32)
        change_ids = np.array([token for token, _ in work.changes], dtype=np.int32)
        changes = np.array([change for _, change in work.changes], dtype=np.float32)
        seen = np.array(work.seen_ids, dtype=np.int32)
        step = native.Step(
            len(tokens),
            len(work.rows),
            count,
            address(tokens),
            (native.Row * len(work.rows))(*work.rows),
            address(blocks),
            address(logit_tokens),
            (native.Choice * max(1, count))(*work.choices),
            address(change_ids),
            address(changes),
            address(seen),
            address(result.chosen),
            address(result.logprob),
            address(result.top_ids),
            address(result.top_logprobs),
            address(result.logits),
            address(self._seconds),
        )
        if self._library.ebb_step(self._handle, ctypes.byref(step)):
            raise MemoryError("The native CPU decoder has not enough memory for this step.")
        return result


def address(array: Array | None) -> int | None:
    """Of its first byte."""
    return None if array is None else array.__array_interface__["data"][0]


def pack_plain(weight: Array, kind: str, threads: int) -> Tiles:
    """`weight` [rows, columns] (uint16 bits of bfloat16, or float32) in the decoder's tiles: a copy."""
    library = native.open_library()
    assert library is not None, "pack_plain needs the library"
    rows, columns = weight.shape
    tiles = -(-rows // 16)
    shape = (tiles, columns, 16) if kind == "float32" else (tiles, -(-columns // 2), 16, 2)
    packed = aligned(int(np.prod(shape)) * weight.itemsize).view(weight.dtype).reshape(shape)
    library.ebb_pack(address(weight), rows, columns, int(kind == "float32"), threads, address(packed))
    return Tiles(kind, rows, columns, packed)


def aligned(size: int) -> npt.NDArray[np.uint8]:
    """`size` bytes on a 64-byte boundary, not cleared."""
    raw = np.empty(size + 64, dtype=np.uint8)
    start = -raw.__array_interface__["data"][0] % 64
    return raw[start : start + size]


def multiply(matrix: Tiles, x: npt.NDArray[np.float32], backend: str = "") -> npt.NDArray[np.float32]:
    """`x` [M, columns] · Wᵀ = [M, rows], by the decoder's kernels on one thread: for tests and benchmarks."""
    library = native.open_library()
    assert library is not None, "multiply needs the library"
    x = np.ascontiguousarray(x, dtype=np.float32)
    out = np.empty((len(x), -(-matrix.rows // 16) * 16), dtype=np.float32)
    struct = matrix.struct()
    if library.ebb_multiply(ctypes.byref(struct), backend.encode(), address(x), len(x), address(out)):
        raise RuntimeError(f"There is no instruction set '{backend}' on this processor.")
    return out[:, : matrix.rows]


def _layer(layer: LayerTiles) -> native.Layer:
    return native.Layer(
        layer.qkv.struct(),
        layer.o.struct(),
        layer.gate_up.struct(),
        layer.down.struct(),
        address(layer.attn_norm),
        address(layer.mlp_norm),
        address(layer.q_norm),
        address(layer.k_norm),
    )


def _places(threads: int) -> list[int]:
    """The CPU of each thread. Pinned only where all of them are ours to use: else the kernel knows better.

    An unpinned thread was seen to stall for 8 ms at a time when the kernel moved it in the middle of a step.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = threads or len(allowed)
    return allowed if count == len(allowed) else [-1] * count
