"""What this machine could do at best: its bandwidth and arithmetic, measured, and the least time of a step."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from data_plane.bench.cases import CaseResult
from data_plane.execution.native_model import ArtifactSource, first_matrix
from data_plane.weights.layout import ModelConfig, tensor_layout
from data_plane.weights.mapped import MappedArtifact
from kernels.cpu.decoder import multiply
from kernels.cpu.library import backend_name, open_library

READ_S = 0.6
PRODUCT_ROWS = 128
PRODUCT_REPEATS = 15


@dataclass(frozen=True, slots=True)
class Machine:
    """`read_gbps`: GB/s of reading as much as the weights take, on all threads. `gmacs`: 10⁹ multiply-adds a second of
    this artifact's kind of product, on all threads (one thread's, times their number). `backend`: the instruction set.
    """

    cpu: str
    threads: int
    backend: str
    read_gbps: float
    gmacs: float


@dataclass(frozen=True, slots=True)
class Work:
    """What every step reads and computes. `weights_bytes` are read once a step, `kv_bytes` once for each token seen."""

    weights_bytes: int
    multiply_adds: int
    kv_bytes: int


def measure_machine(artifact: MappedArtifact, threads: int) -> Machine | None:
    """None where there is no native library to measure with."""
    library = open_library()
    if library is None:
        return None
    size = max(work_of(artifact).weights_bytes, 64 << 20)
    read = median(float(library.ebb_read_bandwidth(size, threads, READ_S)) for _ in range(3))
    matrix = first_matrix(artifact.config, ArtifactSource(artifact), threads)
    x = np.random.default_rng(0).standard_normal((PRODUCT_ROWS, matrix.columns)).astype(np.float32)
    best = min(_timed(lambda: multiply(matrix, x)) for _ in range(PRODUCT_REPEATS))
    gmacs = PRODUCT_ROWS * matrix.rows * matrix.columns / best / 1e9 * threads
    return Machine(_cpu_name(), threads, backend_name(), read, gmacs)


def work_of(artifact: MappedArtifact) -> Work:
    """The artifact's matrices but for an embedding of its own, of which a step reads a few rows."""
    config: ModelConfig = artifact.config
    skipped = () if config.tie_word_embeddings else ("embed.",)
    used = [span for name, span in artifact.spans.items() if not name.startswith(skipped or ("\0",))]
    macs = sum(
        shape[0] * shape[1]
        for name, shape in tensor_layout(config).items()
        if len(shape) == 2 and not name.startswith(skipped or ("\0",))
    )
    return Work(sum(span.end - span.start for span in used), macs, config.kv_elements_per_token * 2)


def bound_s(machine: Machine, work: Work, rows: int, context: float) -> float:
    """The least time of a decode step of `rows` sequences with `context` tokens each: memory or arithmetic."""
    read = (work.weights_bytes + rows * context * work.kv_bytes) / machine.read_gbps / 1e9
    return max(read, rows * work.multiply_adds / machine.gmacs / 1e9)


def bound_ratio(machine: Machine | None, work: Work, case: CaseResult) -> float | None:
    """Our rate as a share of what the bound allows; 1 is perfect."""
    if machine is None or not case.decode_tps:
        return None
    least = bound_s(machine, work, case.concurrency, case.prompt_tokens + case.new_tokens / 2)
    return case.decode_tps * least / case.concurrency


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
