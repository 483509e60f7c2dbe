"""An artifact that was opened before its start: used as it is, and only while it is what it was."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from data_plane.engine.engine import Engine
from data_plane.engine.sampling import SamplingParams
from data_plane.execution import Loaded, LoadOptions, load, native_loading, open_ahead
from data_plane.weights.artifact import Origin, draft, write_artifact
from data_plane.weights.encode import quantized_contents
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig
from data_plane.weights.source_model import SourceModel, TokenizerFiles
from kernels.cpu.library import backend_name
from tests.data_plane.models.tiny import FAMILIES, make_tiny
from tests.kernels.cpu.test_decoder import SHAPES

pytestmark = pytest.mark.skipif(not backend_name(), reason="the native decoder is not built")
ORIGIN = Origin("file:/nowhere/model.gguf", "0" * 64, 123, "Apache-2.0")
TOKENIZER = TokenizerFiles(b"{}", {"bos_token": None, "eos_token_ids": [2]})
OPTIONS = LoadOptions(max_model_len=64, max_num_seqs=2, kv_cache_bytes=1 << 20, threads=1)


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, seed: int = 0) -> Path:
    config_class, model_class, changes = FAMILIES["llama"]
    monkeypatch.setitem(FAMILIES, "llama", (config_class, model_class, {**changes, **SHAPES["ugly"]}))
    tiny = make_tiny("llama", seed)
    read = tiny.tensors.__getitem__
    if quantization == "none":
        return write_artifact(folder.parent, tiny.config, TOKENIZER, read, ORIGIN)
    source = SourceModel(tiny.config, TOKENIZER, read, None, None, read)
    return draft(folder, quantized_contents(source, quantization), TOKENIZER, ORIGIN).folder


def answer(loaded: Loaded) -> list[int | None]:
    engine = Engine(loaded.config, loaded.executor)
    engine.add("asked", [5, 3, 8, 1, 9], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    told: list[int | None] = []
    while engine.has_work:
        told += [output.token_id for output in engine.step()]
    return told


@pytest.mark.parametrize("quantization", ["int8", "int4", "none"])
def test_a_start_uses_what_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    folder = write(tmp_path / "made", monkeypatch, quantization)
    expected = answer(load(folder, OPTIONS))
    ahead = open_ahead(folder)
    assert ahead is not None and ahead.is_still(folder) and not ahead.is_still(tmp_path)
    assert (ahead.weights is None) == (quantization == "none"), "plain weights would be a copy that nobody may need"
    monkeypatch.setattr(native_loading, "open_mapped", None)
    phases: list[str] = []
    assert answer(load(folder, OPTIONS, phases.append, ahead)) == expected
    assert phases == ["loading", "mapped", "warming"]


def test_what_was_replaced_since_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "made", monkeypatch, "int8")
    other = write(tmp_path / "other", monkeypatch, "int8", seed=1)
    ahead = open_ahead(folder)
    assert ahead is not None
    before, wanted = answer(load(folder, OPTIONS, ahead=ahead)), answer(load(other, OPTIONS))
    (other / "model.safetensors").replace(folder / "model.safetensors")
    assert not ahead.is_still(folder)
    assert answer(load(folder, OPTIONS, ahead=ahead)) == wanted != before
    (folder / "manifest.json").unlink()
    assert not ahead.is_still(folder) and open_ahead(folder) is None


def test_what_cannot_be_served_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "made", monkeypatch, "int8")
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(ArtifactError):
        open_ahead(folder)
    odd = write(tmp_path / "odd", monkeypatch, "int8")

    def fits(_config: ModelConfig, _forms: Mapping[str, str]) -> bool:
        return False

    monkeypatch.setattr("data_plane.execution.native_opening.fits", fits)
    assert open_ahead(odd) is None
