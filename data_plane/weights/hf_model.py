"""A folder in Hugging Face layout read as a source model. Safetensors only; knows nothing of hubs.

The folder is a stranger's: nothing in it is a link that is followed, a name that becomes a path elsewhere, or code.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer

from data_plane.weights.bounded_json import read_bounded, read_object, refuse_irregular
from data_plane.weights.errors import ArtifactError, ModelError
from data_plane.weights.hf_config import model_config
from data_plane.weights.layout import ModelConfig
from data_plane.weights.safetensors_file import map_tensors
from data_plane.weights.safetensors_header import TensorSpan, read_header
from data_plane.weights.source_model import DTYPES, SourceModel, TokenizerFiles, fuse
from data_plane.weights.tokenizer_files import guarded, tokenizer_config

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    INDEX,
)
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_JSON_LIMIT, _INDEX_LIMIT, _TOKENIZER_LIMIT = 4 << 20, 64 << 20, 256 << 20
_FLOATS = ("F32", "F16", "BF16")

_GLOBAL = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LAYER = {
    "attn_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": tuple(f"{part}.weight" for part in _QKV),
    "attention.qkv.bias": tuple(f"{part}.bias" for part in _QKV),
    "attention.q_norm.weight": ("self_attn.q_norm.weight",),
    "attention.k_norm.weight": ("self_attn.k_norm.weight",),
    "attention.o.weight": ("self_attn.o_proj.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.down.weight": ("mlp.down_proj.weight",),
}


def open_hf_model(folder: Path, dtype: str) -> SourceModel:
    """Reads configs and headers; tensors are read when asked for. Raises ArtifactError or ModelError."""
    raw = read_object(folder / "config.json", max_bytes=_JSON_LIMIT)
    spans = _find_tensors(folder)
    tokenizer_raw = read_bounded(folder / "tokenizer.json", max_bytes=_TOKENIZER_LIMIT)
    tokenizer = guarded(lambda: Tokenizer.from_str(tokenizer_raw.decode()), ModelError, "tokenizer.json")
    settings = _optional(folder, "tokenizer_config.json")
    eos, bos = _special_ids(folder, raw, settings, tokenizer)
    template = _chat_template(folder, settings)
    tie = raw.get("tie_word_embeddings")
    tied = tie is True or (tie is None and "lm_head.weight" not in spans)
    config = model_config(raw, eos_token_ids=eos, bos_token_id=bos, tied=tied, dtype=dtype)
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= config.vocab_size:
        raise ModelError(f"tokenizer.json has the token id {highest}, the embedding only {config.vocab_size} rows")
    files = TokenizerFiles(
        tokenizer_raw,
        tokenizer_config(
            tokenizer,
            bos_token_id=bos,
            eos_token_ids=eos,
            pad_token=_token_text(settings, "pad_token"),
            unk_token=_token_text(settings, "unk_token"),
            chat_template=template,
        ),
    )
    reader = _TensorReader(folder, spans, config)
    reader.refuse_unknown()
    return SourceModel(
        config,
        files,
        lambda name: reader.read(name).to(DTYPES[dtype]),
        template,
        _card_licence(folder),
        lambda name: reader.read(name).float(),
    )


def source_files(folder: Path) -> list[Path]:
    """Every file of the folder that an import reads, by name. Raises ArtifactError if weights are missing, and for
    what is no file of its own: a link could lead to something that has no end, such as /dev/zero."""
    small = [folder / name for name in SMALL_FILES if (folder / name).exists() or (folder / name).is_symlink()]
    files = sorted([*small, *(folder / name for name in _weight_files(folder))])
    for file in files:
        refuse_irregular(file)
    return files


def _weight_files(folder: Path) -> list[str]:
    if (folder / INDEX).exists():
        return sorted(set(_weight_map(folder).values()))
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return [SINGLE]
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES):
        raise ArtifactError(
            f"the folder holds {pickles[0]} but no safetensors: pickled weights can run code and are never opened; "
            "save the model as safetensors"
        )
    raise ArtifactError(f"{folder} holds neither {SINGLE} nor {INDEX}; name a folder in Hugging Face layout")


def _weight_map(folder: Path) -> dict[str, str]:
    value = read_object(folder / INDEX, max_bytes=_INDEX_LIMIT).get("weight_map")
    entries = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if not entries:
        raise ArtifactError(f"{INDEX} has no weight_map; get the model again")
    for name, file in entries.items():
        if not isinstance(file, str) or not SHARD_NAME.fullmatch(file):
            raise ArtifactError(f"{INDEX} puts {name[:100]!r} in {str(file)[:100]!r}, which is no name of a shard")
    return cast("dict[str, str]", entries)


@dataclass(frozen=True, slots=True)
class _Place:
    file: str
    span: TensorSpan


def _find_tensors(folder: Path) -> dict[str, _Place]:
    """Where each tensor is; with an index, the index and the shards must agree."""
    found: dict[str, _Place] = {}
    for file in _weight_files(folder):
        for span in read_header(folder / file):
            if span.name in found:
                raise ArtifactError(f"tensor {span.name[:100]!r} is in both {found[span.name].file} and {file}")
            found[span.name] = _Place(file, span)
    if (folder / INDEX).exists():
        for name, file in _weight_map(folder).items():
            if name not in found or found[name].file != file:
                raise ArtifactError(f"{INDEX} promises tensor {name[:100]!r} in {file}, which lacks it; get it again")
    return found


class _TensorReader:
    """Translates the artifact's names to Hugging Face's and fuses."""

    def __init__(self, folder: Path, places: Mapping[str, _Place], config: ModelConfig) -> None:
        self.folder, self.places, self.config = folder, places, config

    def read(self, name: str) -> torch.Tensor:
        return fuse(name, [self._part(source) for source in self._sources(name)])

    @staticmethod
    def _sources(name: str) -> list[str]:
        if name in _GLOBAL:
            return [_GLOBAL[name]]
        _, index, rest = name.split(".", 2)
        return [f"model.layers.{index}.{part}" for part in _LAYER[rest]]

    def _part(self, source: str) -> torch.Tensor:
        place = self.places.get(source)
        if place is None:
            raise ModelError(f"the files lack the tensor {source}, which the config asks for; get a complete model")
        if place.span.dtype not in _FLOATS:
            raise ModelError(f"tensor {source} is {place.span.dtype}; float32, float16 and bfloat16 are served")
        return map_tensors(self.folder / place.file, [place.span])[source]

    def refuse_unknown(self) -> None:
        """A tensor nobody reads would be a model that silently computes something else."""
        known = set(_GLOBAL.values())
        for i in range(self.config.num_layers):
            known.update(f"model.layers.{i}.{part}" for parts in _LAYER.values() for part in parts)
        # a buffer that old versions of transformers saved; the config implies it
        unknown = sorted(n for n in set(self.places) - known if not n.endswith("rotary_emb.inv_freq"))
        if unknown:
            raise ModelError(
                f"the files hold {len(unknown)} tensors that this architecture does not have, such as "
                f"{', '.join(name[:80] for name in unknown[:3])}; they would be left out silently"
            )


def _optional(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    return read_object(path, max_bytes=_JSON_LIMIT) if path.exists() or path.is_symlink() else {}


def _ids(value: object) -> list[int]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [v for v in values if type(v) is int]


def _token_text(settings: Mapping[str, Any], key: str) -> str | None:
    """A token is written as a string, or as an object whose content is the string."""
    value = settings.get(key)
    text = cast("dict[str, object]", value).get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _special_ids(
    folder: Path, raw: Mapping[str, Any], settings: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[list[int], int | None]:
    """Ends: generation_config's first, then config's, then the tokenizer's. Begin: config's, then the tokenizer's."""
    generation = _optional(folder, "generation_config.json")
    named = [_token_text(settings, key) for key in ("eos_token", "bos_token")]
    eos_token, bos_token = [None if text is None else tokenizer.token_to_id(text) for text in named]
    ends = [*_ids(generation.get("eos_token_id")), *_ids(raw.get("eos_token_id")), *_ids(eos_token)]
    begins = [*_ids(raw.get("bos_token_id")), *_ids(generation.get("bos_token_id")), *_ids(bos_token)]
    return list(dict.fromkeys(ends)), begins[0] if begins else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists() or path.is_symlink():
        try:
            return read_bounded(path, max_bytes=_JSON_LIMIT).decode()
        except UnicodeDecodeError:
            raise ArtifactError("chat_template.jinja is not UTF-8; get the model again") from None
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = cast("list[dict[str, Any]]", [t for t in cast("list[object]", template) if isinstance(t, dict)])
        template = next((t.get("template") for t in named if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _card_licence(folder: Path) -> str | None:
    """`license:` of the model card's front matter."""
    path = folder / "README.md"
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        front = file.read(1 << 16).decode("utf-8", errors="replace").split("\n---", 1)[0]
    found = re.search(r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9 .+_-]{0,99})", front, re.MULTILINE)
    return found.group(1).strip() if found and front.startswith("---") else None
