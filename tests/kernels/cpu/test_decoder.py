"""Whole tiny models in the native decoder: against the torch path, and bit for bit against themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from data_plane.engine.batch import Batch, Row
from data_plane.engine.sampling import SamplingParams
from data_plane.execution.loaded import LoadOptions
from data_plane.execution.native_loading import build
from data_plane.execution.native_model import ArraySource
from data_plane.execution.native_runner import NativeRunner
from data_plane.models import registry
from data_plane.weights.encode import quantized_contents
from data_plane.weights.layout import ModelConfig
from data_plane.weights.source_model import SourceModel, TokenizerFiles
from kernels.cpu.decoder import GREEDY, Array, StepInput
from kernels.ops import Segment
from tests.data_plane.models.tiny import FAMILIES, make_tiny
from tests.kernels.cpu.backends import Backends

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-5, "int8": 2e-2, "int4": 2e-2}
"""Of the logits, relative to their norm. Quantized, a code on the edge between two may fall to either side, and a tiny
random model makes much of it; the products alone are compared exactly in test_products.py."""
SHAPES = {
    "round": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_attention_heads": 4},
    "ugly": {"hidden_size": 96, "intermediate_size": 160, "head_dim": 16},
}
LENGTHS = (1, 15, 16, 40, 70, 133)
LOGIT_ROWS = sum(LENGTHS)

Logits = npt.NDArray[np.float32]


@dataclass
class Model:
    config: ModelConfig
    tensors: dict[str, Tensor]

    def runner(self, backend: str, *, wide: bool = True, threads: int = 2) -> NativeRunner:
        arrays: dict[str, Array] = {
            name: (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for name, tensor in self.tensors.items()
        }
        element = 4 if wide else 2
        loaded = build(
            self.config,
            ArraySource(arrays),
            LoadOptions(
                dtype="float32" if wide else "bfloat16",
                kv_cache_bytes=64 * 16 * self.config.kv_elements_per_token * element,
                threads=threads,
            ),
            backend,
        )
        assert isinstance(loaded.executor, NativeRunner)
        return loaded.executor

    def twin(self, tokens: Sequence[int]) -> Logits:
        """[tokens, vocabulary] by the torch path, in float32."""
        count = len(tokens)
        plain = {
            name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in self.tensors.items()
        }
        model = registry.build(self.config, plain, count)
        caches = [
            torch.zeros(count, 2, self.config.num_kv_heads, self.config.head_dim) for _ in range(self.config.num_layers)
        ]
        at = torch.arange(count)
        with torch.inference_mode():
            segments = [Segment(0, count, count, slice(0, count))]
            return model.logits(model.forward(torch.tensor(tokens), at, at, segments, caches)).numpy()


@cache
def make_model(family: str, kind: str, shape: str = "ugly") -> Model:
    config_class, model_class, changes = FAMILIES[family]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, family, (config_class, model_class, {**changes, **SHAPES[shape]}))
        tiny = make_tiny(family)
    if kind in ("float32", "bfloat16"):
        dtype = getattr(torch, kind)
        return Model(tiny.config, {name: tensor.to(dtype) for name, tensor in tiny.tensors.items()})
    read = tiny.tensors.__getitem__
    contents = quantized_contents(SourceModel(tiny.config, TokenizerFiles(b"", {}), read, None, None, read), kind)
    tensors: dict[str, Tensor] = {}
    for name in contents.specs:
        tensors |= contents.read(name)
    return Model(contents.config, tensors)


def sequences() -> list[list[int]]:
    random = np.random.default_rng(4)
    return [random.integers(3, 101, length).tolist() for length in LENGTHS]


@dataclass
class Plan:
    """How the sequences come: `chunk` tokens of each a step, all together or one after another, in which blocks."""

    chunk: int
    together: bool
    blocks: Sequence[int] = range(64)

    def run(self, runner: NativeRunner, tokens: Sequence[Sequence[int]]) -> list[Logits]:
        """Of each sequence the logits after each of its tokens."""
        tables: list[Sequence[int]] = []
        taken = 0
        for sequence in tokens:
            count = -(-len(sequence) // 16)
            tables.append(self.blocks[taken : taken + count])
            taken += count
        got: list[list[Logits]] = [[] for _ in tokens]
        for group in [list(range(len(tokens)))] if self.together else [[at] for at in range(len(tokens))]:
            for start in range(0, max(len(tokens[at]) for at in group), self.chunk):
                pieces = [(at, tokens[at][start : start + self.chunk]) for at in group if len(tokens[at]) > start]
                for (at, _), logits in zip(pieces, step(runner, pieces, start, tables), strict=True):
                    got[at].append(logits)
        return [np.concatenate(each) for each in got]


def step(
    runner: NativeRunner, pieces: Sequence[tuple[int, Sequence[int]]], start: int, tables: Sequence[Sequence[int]]
) -> list[Logits]:
    ids: list[int] = []
    rows: list[tuple[int, int, int, int]] = []
    blocks: list[int] = []
    for at, piece in pieces:
        rows.append((len(ids), len(piece), start, len(blocks)))
        ids.extend(piece)
        blocks.extend(tables[at])
    work = StepInput(ids, rows, blocks, range(len(ids)), [GREEDY] * len(ids))
    result = runner.decoder.step(work, wants_logits=True)
    assert result.logits is not None
    np.testing.assert_array_equal(result.chosen, result.logits.argmax(-1))
    return [result.logits[first : first + count] for first, count, _, _ in rows]


WHOLE = Plan(chunk=512, together=False)


CASES = [
    *((family, "ugly", "float32") for family in ("llama-tied", "llama-llama3", "qwen2", "qwen3")),
    *(("llama", "round", kind) for kind in TOLERANCE),
    *(("qwen3", "ugly", kind) for kind in ("bfloat16", "int8", "int4")),
]


@pytest.mark.parametrize(("family", "shape", "kind"), CASES)
def test_against_the_torch_path(backends: Backends, family: str, shape: str, kind: str) -> None:
    model, tokens = make_model(family, kind, shape), sequences()[3:5]
    with backends.using("avx2"):
        for got, sequence in zip(WHOLE.run(model.runner("avx2"), tokens), tokens, strict=True):
            expected = model.twin(sequence)
            assert np.linalg.norm(got - expected) <= TOLERANCE[kind] * np.linalg.norm(expected)


@pytest.mark.parametrize("wide", [True, False], ids=["kv-float32", "kv-bfloat16"])
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_logits_depend_on_nothing_beside_their_sequence(
    backends: Backends, backend: str, kind: str, wide: bool
) -> None:
    """Neither on the batch, nor on chunks, threads, blocks or the instruction set."""
    model, tokens = make_model("qwen3", kind), sequences()
    scattered = np.random.default_rng(2).permutation(64).tolist()
    with backends.using("avx2"):
        expected = WHOLE.run(model.runner("avx2", wide=wide, threads=1), tokens)
    with backends.using(backend):
        runner = model.runner(backend, wide=wide)
        plans = [WHOLE, Plan(512, True), Plan(1, True, scattered), Plan(7, True), Plan(33, True, scattered)]
        for plan in plans:
            for got, want in zip(plan.run(runner, tokens), expected, strict=True):
                np.testing.assert_array_equal(got, want)
        three = model.runner(backend, wide=wide, threads=3)
        for got, want in zip(Plan(50, True).run(three, tokens), expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_a_request_whose_logits_are_no_numbers_fails_alone(backends: Backends, backend: str, kind: str) -> None:
    whole, poison = make_model("llama", kind), 77
    name = "embed.weight" if kind == "bfloat16" else "embed.scale"
    # a row of a matrix, or a row's scale
    broken = whole.tensors[name].clone()
    broken[poison] = float("nan")
    model = Model(whole.config, {**whole.tensors, name: broken})
    params = SamplingParams(max_tokens=1, temperature=0.0)
    drawn = SamplingParams(max_tokens=1, temperature=0.7, logprobs=1)
    healthy = [5, 6, 7, 8]
    sick = [5, poison, 7, 8] * 5

    def rows(parameters: SamplingParams) -> tuple[Row, ...]:
        return (
            Row("a", healthy, 0, [3], parameters, 1, True),
            Row("b", sick, 0, [1, 2], parameters, 1, True),
            Row("c", healthy, 0, [0], parameters, 1, True),
        )

    with backends.using(backend):
        runner = model.runner(backend, wide=False)
        for parameters in (params, drawn):
            first, failed, last = runner.run(Batch(rows(parameters)))
            assert first.tokens == last.tokens and first.error is None and len(first.tokens) == 1
            assert failed.tokens == () and (failed.error or "").startswith("numerical_error")
            # the blocks that it leaves hurt nobody who gets them next
            long = Row("d", healthy * 4, 0, [1], parameters, 1, True)
            fresh = Row("d", healthy * 4, 0, [9], parameters, 1, True)
            for start in (0, 13):
                there, here = (
                    Row("d", row.tokens[start : start + 13], start, row.blocks, parameters, 1, True)
                    for row in (long, fresh)
                )
                assert runner.run(Batch((there,))) == runner.run(Batch((here,)))
