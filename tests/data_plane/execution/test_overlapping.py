"""The native decoder with the engine's work beside it: the same answers, and only where a core is free for it."""

import os
from dataclasses import replace

import pytest

from data_plane.engine.engine import Engine
from data_plane.engine.outputs import Output
from data_plane.engine.sampling import SamplingParams
from data_plane.execution.loaded import LoadOptions
from data_plane.execution.native_loading import build
from data_plane.execution.native_model import ArraySource
from data_plane.execution.native_runner import NativeRunner
from data_plane.execution.overlapping import OverlappingRunner
from kernels.cpu.library import backend_name
from tests.data_plane.models.tiny import make_tiny
from tests.kernels.cpu.test_decoder import make_model


@pytest.mark.skipif(not backend_name(), reason="the native decoder is not built")
def test_answers_are_those_without_overlap() -> None:
    model = make_model("llama", "float32")
    arrays = {name: tensor.numpy() for name, tensor in model.tensors.items()}

    def answers(overlap: bool) -> tuple[dict[str, list[Output]], int]:
        options = LoadOptions(
            dtype="float32", max_model_len=128, max_num_seqs=4, kv_cache_bytes=4 << 20, threads=1, overlap=overlap
        )
        loaded = build(model.config, ArraySource(arrays), options)
        assert isinstance(loaded.executor, OverlappingRunner if overlap else NativeRunner)
        config = replace(loaded.config, eos_token_ids=frozenset({7}))
        # the sizes of the prompts' chunks follow from the time that steps take: they are others each time
        engine = Engine(config, loaded.executor)
        for at in range(6):
            params = SamplingParams(max_tokens=20 + at, temperature=0.7 * (at % 2), seed=at, frequency_penalty=at % 3)
            engine.add(str(at), [at + 1, *range(20 + 7 * at)], params)
        got: dict[str, list[Output]] = {}
        while engine.has_work:
            for output in engine.step():
                got.setdefault(output.request_id, []).append(output)
            engine.check()
        return got, engine.stats().foreseen_steps

    (plain, none), (overlapped, some) = answers(False), answers(True)
    told = [
        {name: [(o.token_id, o.finish_reason) for o in outputs] for name, outputs in got.items()}
        for got in (plain, overlapped)
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 6
    assert none == 0 < some


def test_a_model_that_the_decoder_is_not_written_for_is_refused() -> None:
    config = make_tiny("llama").config
    with pytest.raises(ValueError, match="heads of 10"):
        build(config, ArraySource({}), LoadOptions())


def test_the_engine_works_beside_the_decoder_where_a_core_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})  # pyright: ignore[reportUnknownLambdaType]
    assert not LoadOptions().overlaps
    assert not LoadOptions(threads=2).overlaps
    assert LoadOptions(threads=1).overlaps
    assert LoadOptions(threads=2, overlap=True).overlaps
    assert not LoadOptions(threads=1, overlap=False).overlaps
