"""Blocks copied out of one KV cache and into another: the bits that would have been computed, in either path."""

from dataclasses import replace

import pytest

from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from data_plane.engine.shelf import CopyingExecutor
from data_plane.execution import loading, native_loading
from data_plane.execution.loaded import Loaded, LoadOptions
from data_plane.execution.native_model import ArraySource
from kernels.cpu.library import backend_name
from tests.data_plane.engine.test_shelf import Lying
from tests.kernels.cpu.test_decoder import make_model

PROMPT = [5, 3, 8, *range(1, 60)]
SECRET = b"the same"


def load(path: str, dtype: str, budget: int = 512, kv_cache_bytes: int = 4 << 20, threads: int = 1) -> Loaded:
    model = make_model("llama", "float32")
    options = LoadOptions(
        dtype=dtype,
        max_model_len=128,
        max_num_seqs=2,
        max_num_batched_tokens=budget,
        kv_cache_bytes=kv_cache_bytes,
        threads=threads,
    )
    if path == "torch":
        return loading.build(model.config, model.tensors, options)
    arrays = {name: tensor.numpy() for name, tensor in model.tensors.items()}
    return native_loading.build(model.config, ArraySource(arrays), options)


def ask(engine: Engine) -> list[Output]:
    engine.add("asked", PROMPT, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=3))
    told: list[Output] = []
    while engine.has_work:
        told += engine.step()
    engine.check()
    return told


def blocks_of(engine: Engine) -> dict[bytes, bytes]:
    executor = engine.executor
    assert isinstance(executor, CopyingExecutor)
    found = [(one.name, block) for one, block in engine.hold_hottest(1000) if block is not None]
    engine.let_go([block for _, block in found])
    return {name: executor.copy_out(block) for name, block in found}


@pytest.mark.parametrize(
    ("path", "dtype"), [("native", "bfloat16"), ("native", "float32"), ("torch", "float32"), ("torch", "bfloat16")]
)
def test_answers_go_on_from_copied_blocks_as_from_computed_ones(path: str, dtype: str) -> None:
    if path == "native" and not backend_name():
        pytest.skip("the native decoder is not built")
    first = load(path, dtype)
    engine = Engine(first.config, first.executor, secret=SECRET)
    answer = ask(engine)
    shelf = blocks_of(engine)
    assert len(shelf) == (len(PROMPT) + 11) // 16
    second = load(path, dtype, kv_cache_bytes=1 << 20)
    assert isinstance(first.executor, CopyingExecutor) and isinstance(second.executor, CopyingExecutor)
    assert first.executor.kv_form == second.executor.kv_form
    assert len(next(iter(shelf.values()))) == first.executor.block_bytes
    other = Engine(second.config, second.executor, secret=SECRET)
    other.use_shelf(Lying(engine))
    again = ask(other)
    assert [(o.token_id, o.logprobs) for o in again] == [(o.token_id, o.logprobs) for o in answer]
    assert again[0].cached_tokens == 48 and other.restored_blocks == 3
    assert {name: content for name, content in blocks_of(other).items() if name in shelf} == shelf


@pytest.mark.skipif(not backend_name(), reason="the native decoder is not built")
def test_the_native_decoder_computes_the_same_bits_in_other_chunks_and_threads() -> None:
    found: list[dict[bytes, bytes]] = []
    for budget, threads in ((512, 1), (7, 2)):
        loaded = load("native", "bfloat16", budget, threads=threads)
        engine = Engine(loaded.config, loaded.executor, secret=SECRET)
        ask(engine)
        found.append(blocks_of(engine))
    assert found[0] == found[1]


@pytest.mark.skipif(not backend_name(), reason="the native decoder is not built")
def test_other_values_have_another_form() -> None:
    forms: set[str] = set()
    for path, dtype in (("native", "bfloat16"), ("native", "float32"), ("torch", "float32"), ("torch", "bfloat16")):
        executor = load(path, dtype).executor
        assert isinstance(executor, CopyingExecutor)
        forms.add(executor.kv_form)
    model = make_model("llama", "float32")
    turned = replace(model.config, rope_theta=5e5)
    arrays = {name: tensor.numpy() for name, tensor in model.tensors.items()}
    options = LoadOptions(max_model_len=128, max_num_seqs=2, kv_cache_bytes=1 << 20, threads=1)
    executor = native_loading.build(turned, ArraySource(arrays), options).executor
    assert isinstance(executor, CopyingExecutor)
    forms.add(executor.kv_form)
    assert len(forms) == 5, forms
