"""Artifacts: what is written is what is opened, and nothing damaged is opened."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data_plane.weights.artifact import (
    Origin,
    open_artifact,
    write_artifact,
)
from data_plane.weights.errors import ArtifactError
from data_plane.weights.layout import ModelConfig, parse_config, tensor_layout
from data_plane.weights.mapped import artifact_folder, open_mapped, verify_artifact
from data_plane.weights.safetensors_file import map_tensors
from data_plane.weights.safetensors_header import read_header
from data_plane.weights.source_model import TokenizerFiles

ROOT = Path(__file__).resolve().parents[3]
ORIGIN = Origin("file:/nowhere/model.gguf", "0" * 64, 123, "Apache-2.0")
TOKENIZER = TokenizerFiles(b"{}", {"bos_token": None, "eos_token_ids": [2]})


def tiny_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "architecture": "llama",
        "hidden_size": 12,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 6,
        "intermediate_size": 20,
        "vocab_size": 33,
        "max_position_embeddings": 128,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "qk_norm": True,
        "eos_token_ids": [2],
        "bos_token_id": 1,
        "dtype": "bfloat16",
    }
    return parse_config(values | changes)


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in tensor_layout(config).items()}


def write(root: Path, seed: int = 0, **changes: Any) -> Path:
    config = tiny_config(**changes)
    return write_artifact(root, config, TOKENIZER, random_tensors(config, seed).__getitem__, ORIGIN)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_written_is_opened(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, dtype=dtype)
    artifact = open_artifact(path)
    expected = random_tensors(tiny_config())
    assert list(artifact.tensors) == list(expected)
    for name, tensor in artifact.tensors.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.data_ptr() % 64 == 0
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=0, atol=0)
    assert artifact.config == tiny_config(dtype=dtype).as_dict()
    assert artifact.manifest["parameters"] == sum(t.numel() for t in expected.values())
    assert artifact.manifest["source_bytes"] == 123
    verify_artifact(path)


def test_the_safetensors_library_reads_it_too(tmp_path: Path) -> None:
    path = write(tmp_path)
    theirs = load_file(path / "model.safetensors")
    ours = open_artifact(path).tensors
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])


def test_equal_values_are_one_artifact_and_others_are_not(tmp_path: Path) -> None:
    first = write(tmp_path)
    inode = (first / "model.safetensors").stat().st_ino
    assert write(tmp_path) == first
    assert (first / "model.safetensors").stat().st_ino == inode
    assert write(tmp_path, seed=1) != first
    assert write(tmp_path, rope_theta=5000.0) != first


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = random_tensors(config)
    tensors["layers.1.mlp.down.weight"] = torch.zeros(3)
    with pytest.raises(ArtifactError, match=r"layers\.1\.mlp\.down\.weight"):
        write_artifact(tmp_path, config, TOKENIZER, tensors.__getitem__, ORIGIN)
    assert [p for p in tmp_path.iterdir() if p.name != ".lock"] == []


def test_leftovers_of_the_killed_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    tmp_path.joinpath(".partial-dead").mkdir()
    tmp_path.joinpath(".partial-dead", "junk").write_bytes(b"x")
    from data_plane.weights.scratch import scratch_folder

    with scratch_folder(tmp_path) as alive:
        write(tmp_path)
        assert alive.is_dir()
    assert not list(tmp_path.glob(".partial-*"))


def test_a_damaged_artifact_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path)
    tensors = path / "model.safetensors"
    tensors.chmod(0o644)
    os.truncate(tensors, 1000)
    with pytest.raises(ArtifactError, match=r"truncated|accounts"):
        open_artifact(path)
    assert write(tmp_path) == path
    verify_artifact(path)


def test_verify_sees_one_flipped_bit(tmp_path: Path) -> None:
    path = write(tmp_path)
    tensors = path / "model.safetensors"
    raw = bytearray(tensors.read_bytes())
    raw[-7] ^= 4
    tensors.chmod(0o644)
    tensors.write_bytes(raw)
    open_artifact(path)
    with pytest.raises(ArtifactError, match="digest"):
        verify_artifact(path)


@pytest.mark.parametrize(
    "digest", ["", "sha256:..", "sha256:" + "A" * 64, "md5:" + "0" * 64, "sha256:" + "0" * 63 + "/"]
)
def test_a_digest_is_not_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ArtifactError, match="digest"):
        artifact_folder(tmp_path, digest)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", True),
        ("num_layers", 10**9),
        ("head_dim", 7),
        ("num_kv_heads", 3),
        ("rope_theta", float("inf")),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 4}),
        ("eos_token_ids", [33]),
        ("eos_token_ids", None),
        ("bos_token_id", -1),
        ("dtype", "float16"),
        ("architecture", "gemma"),
    ],
)
def test_a_config_is_checked(key: str, value: object) -> None:
    with pytest.raises(ArtifactError, match=key):
        parse_config(tiny_config().as_dict() | {key: value})


def _header_file(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def _entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data_bytes", "sentence"),
    [
        (json.dumps({"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}), 12, "overlap"),
        (json.dumps({"a": _entry(0, 8, [2]), "b": _entry(12, 20, [2])}), 20, "hole"),
        (json.dumps({"a": _entry(0, 8, [3])}), 8, "need 12"),
        (json.dumps({"a": _entry(0, 8, [2])}), 9, "accounts for"),
        (json.dumps({"a": _entry(0, 8, [2])}), 7, "accounts for"),
        (json.dumps({"a": _entry(8, 0, [2])}), 8, "spans -8"),
        (json.dumps({"a": _entry(0, 8, [2], "F31")}), 8, "unknown dtype"),
        (json.dumps({"a": _entry(0, 8, [-2])}), 8, "where a size is needed"),
        (json.dumps({"a": _entry(0, 8, [1] * 9)}), 8, "at most 8"),
        (json.dumps({"a": _entry(0, 8, [2**60])}), 8, "where a size is needed"),
        ('{"a": {"dtype":"F32","shape":[0],"data_offsets":[0,0]}, "a": {}}', 0, "twice"),
        ('{"a": [1]}', 0, "described by a list"),
        ("[" * 100_000, 0, "not valid"),
        ("[]", 0, "must be a JSON object"),
        ('{"a": NaN}', 0, "NaN"),
        ("\xff", 0, "must be|not valid"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, header: str, data_bytes: int, sentence: str) -> None:
    path = _header_file(tmp_path / "model.safetensors", header.encode("latin-1"), bytes(data_bytes))
    with pytest.raises(ArtifactError, match=sentence):
        read_header(path)


@pytest.mark.parametrize("length", [0, 3, 101, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_length_that_lies(tmp_path: Path, length: int) -> None:
    path = _header_file(tmp_path / "model.safetensors", b"{}" + b" " * 98, length=length)
    with pytest.raises(ArtifactError):
        read_header(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        target = tmp_path / f"elsewhere-{name}"
        (path / name).rename(target)
        (path / name).symlink_to(target)
        with pytest.raises(ArtifactError, match=name):
            open_artifact(path)
        (path / name).unlink()
        target.rename(path / name)
    open_artifact(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 1000), flips=st.lists(st.tuples(st.integers(0, 999), st.integers(1, 255)), max_size=4))
def test_mutated_headers_are_refused_or_read_within_bounds(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.unlink(missing_ok=True)
    save_file({f"t{i}": torch.arange(i + 1, dtype=torch.float32) for i in range(5)}, path)
    raw = bytearray(path.read_bytes())
    for position, mask in flips:
        raw[position % len(raw)] ^= mask
    raw = raw[: len(raw) - (cut if cut < 200 else 0)]
    path.write_bytes(raw)
    try:
        spans = read_header(path)
        tensors = map_tensors(path, spans)
    except ArtifactError as error:
        assert len(str(error)) > 20
        return
    assert all(0 <= span.start <= span.end <= len(raw) for span in spans)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) <= len(raw)


def test_opening_without_torch(tmp_path: Path) -> None:
    """A start without torch opens artifacts: importing torch takes longer than all the rest of such a start."""
    path = write(tmp_path)
    code = (
        "import sys; from pathlib import Path; from data_plane.weights.mapped import open_mapped\n"
        "artifact = open_mapped(Path(sys.argv[1]))\n"
        "print(len(artifact.view('embed.weight')), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [str(33 * 12 * 2), "False", "False"]


def test_the_mapping_is_what_torch_sees(tmp_path: Path) -> None:
    path = write(tmp_path)
    mapped, tensors = open_mapped(path), open_artifact(path).tensors
    assert set(mapped.spans) == set(mapped.forms) == set(tensors)
    for name, span in mapped.spans.items():
        assert (span.dtype, span.shape, span.start % 64) == ("BF16", tuple(tensors[name].shape), 0)
        assert bytes(mapped.view(name)) == tensors[name].view(torch.uint8).numpy().tobytes()
