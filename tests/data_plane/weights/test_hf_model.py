"""Folders in Hugging Face layout: as transformers saves them, and as an attacker would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, hugging_face_tensors, write_gguf

from data_plane.weights.artifact import Origin, open_artifact, write_artifact
from data_plane.weights.errors import ArtifactError, WeightsError
from data_plane.weights.gguf_tokenizer import read_tokenizer
from data_plane.weights.hf_model import open_hf_model, source_files

VOCABULARY = 261


def save_folder(folder: Path, architecture: str = "LlamaForCausalLM", *, shards: int = 1, **changes: Any) -> Path:
    """A tiny model as transformers would save it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(folder / "m.gguf")
    from data_plane.weights.gguf import GgufFile

    (folder / "tokenizer.json").write_bytes(read_tokenizer(GgufFile(folder / "m.gguf").metadata).files.tokenizer)
    (folder / "m.gguf").unlink()
    kind = "qwen3" if architecture.startswith("Qwen3") else "llama"
    tensors = hugging_face_tensors(kind, VOCABULARY, tied=False, bias=architecture.startswith("Qwen2"))
    config = {
        "architectures": [architecture],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "eos_token_id": 0,
        "bos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages }}", "eos_token": "<|end|>"})
    )
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    for i in range(shards):
        part = dict(list(tensors.items())[i::shards])
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
)
def test_values(tmp_path: Path, architecture: str, shards: int) -> None:
    folder = save_folder(tmp_path / "m", architecture, shards=shards)
    model = open_hf_model(folder, "float32")
    path = write_artifact(tmp_path / "a", model.config, model.tokenizer, model.read_tensor, Origin("x", "0", 1, None))
    ours = open_artifact(path).tensors
    theirs: dict[str, torch.Tensor] = {}
    for file in source_files(folder):
        theirs |= load_file(file) if file.suffix == ".safetensors" else {}
    assert torch.equal(ours["lm_head.weight"], theirs["lm_head.weight"])
    for i in range(LAYERS):
        name = f"model.layers.{i}.self_attn."
        qkv = torch.cat([theirs[f"{name}{part}_proj.weight"] for part in "qkv"])
        assert torch.equal(ours[f"layers.{i}.attention.qkv.weight"], qkv)
        assert (f"layers.{i}.attention.qkv.bias" in ours) == (architecture == "Qwen2ForCausalLM")
        assert (f"layers.{i}.attention.q_norm.weight" in ours) == (architecture == "Qwen3ForCausalLM")
    assert model.chat_template == "{{ messages }}"
    assert model.config.eos_token_ids == [0]


def test_generation_config_template_file_and_card(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 0]}')
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: other\n")
    model = open_hf_model(folder, "bfloat16")
    assert model.config.eos_token_ids == [5, 0]
    assert model.chat_template == "{{ bos_token }}"
    assert model.licence == "apache-2.0"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, None),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert open_hf_model(save_folder(tmp_path / "m", **changes), "bfloat16").config.rope_scaling == expected


def test_sliding_windows_end_the_context(tmp_path: Path) -> None:
    assert (
        open_hf_model(save_folder(tmp_path / "a", sliding_window=64), "bfloat16").config.max_position_embeddings == 64
    )
    off = save_folder(tmp_path / "b", sliding_window=64, use_sliding_window=False)
    assert open_hf_model(off, "bfloat16").config.max_position_embeddings == 256


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
        ({"architectures": None}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
        ({"num_attention_heads": "many"}, "many"),
        ({"num_hidden_layers": 10**9}, "num_layers"),
        ({"vocab_size": 100}, "token id"),
        ({"num_hidden_layers": 1}, "does not have|left out"),
        ({"tie_word_embeddings": "yes", "eos_token_id": 10**7}, "eos_token_ids"),
    ],
)
def test_configs_that_cannot_be_served(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    folder = save_folder(tmp_path / "m", **changes)
    with pytest.raises(WeightsError, match=sentence):
        open_hf_model(folder, "bfloat16")


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _linked(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder / "elsewhere")


def _linked_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "elsewhere")
    (folder / "tokenizer.json").symlink_to(folder / "elsewhere")


def _index(target: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        index = {"weight_map": {"model.norm.weight": target}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def _cut(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-100])


def _write(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_pickle_only, "pickled"),
        (_linked, "not a regular file"),
        (_linked_tokenizer, "symbolic link"),
        (_index("../model.safetensors"), "no name of a shard"),
        (_index("/etc/passwd"), "no name of a shard"),
        (_index("sub/model.safetensors"), "no name of a shard"),
        (_index("other.safetensors"), r"other\.safetensors"),
        (_cut, "accounts for"),
        (_write("config.json", '{"a": 1, "a": 2}'), "twice"),
        (_write("config.json", "[" * 50_000), "not valid"),
        (_write("config.json", "[]"), "JSON object"),
        (_write("tokenizer.json", '{"version": "1.0"}'), r"tokenizer\.json"),
        (_write("tokenizer.json", "\udcff".encode("utf-8", "surrogatepass").decode("latin-1")), r"tokenizer\.json"),
    ],
)
def test_spoiled_folders(tmp_path: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    folder = save_folder(tmp_path / "m")
    spoil(folder)
    with pytest.raises(WeightsError, match=sentence):
        open_hf_model(folder, "bfloat16")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"neither model\.safetensors"):
        source_files(tmp_path)
