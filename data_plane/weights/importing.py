"""One import, from a source's name to an artifact. Knows nothing of processes or of how progress is shown."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_plane.weights.artifact import Origin
from data_plane.weights.building import Judge, Wanted, build_judged, build_plain
from data_plane.weights.gguf_model import open_gguf_model
from data_plane.weights.hf_model import open_hf_model
from data_plane.weights.mapped import MappedArtifact, open_mapped
from data_plane.weights.progress import Progress
from data_plane.weights.scratch import scratch_folder
from data_plane.weights.source_model import SourceModel
from data_plane.weights.sources import Fetched, fetch


@dataclass(frozen=True, slots=True)
class ImportOptions:
    source: str
    artifacts: Path
    scratch: Path
    dtype: str
    max_bytes: int
    quantization: str
    force: bool


def run_import(
    options: ImportOptions, progress: Progress, before_parse: Callable[[int], None], judge: Callable[[], Judge]
) -> dict[str, Any]:
    """The fields of `wire.jobs.ImportResult`. `before_parse` is told the source's bytes before they are trusted.

    `judge` is called where a model must be run, that is for all but plain weights.
    """
    with scratch_folder(options.scratch) as scratch:
        fetched = fetch(options.source, scratch, progress, max_bytes=options.max_bytes)
        before_parse(fetched.size_bytes)
        progress.update("parse", 0, fetched.size_bytes)
        opener = open_hf_model if fetched.path.is_dir() else open_gguf_model
        model = opener(fetched.path, options.dtype)
        progress.update("parse", fetched.size_bytes, fetched.size_bytes)
        origin = Origin(options.source, fetched.sha256, fetched.size_bytes, _licence(model, fetched))
        wanted = Wanted(options.quantization, options.force, options.artifacts)
        path = build_plain(model, origin, wanted, progress) if wanted.quantization == "none" else None
        artifact = open_mapped(path or build_judged(model, origin, wanted, judge(), progress))
    return _result(artifact, fetched, model)


def _result(artifact: MappedArtifact, fetched: Fetched, model: SourceModel) -> dict[str, Any]:
    config = artifact.config
    sizes = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "vocab_size")
    return {
        "artifact": artifact.manifest["digest"],
        "architecture": config.architecture,
        "parameters": artifact.manifest["parameters"],
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "chat_template": model.chat_template,
        "licence": _licence(model, fetched),
        "source_bytes": fetched.size_bytes,
        "source_sha256": fetched.sha256,
        "artifact_bytes": artifact.manifest["bytes"],
        "dtype": config.dtype,
        "kv_bytes_per_token": config.kv_bytes_per_token,
        "shape": {size: getattr(config, size) for size in sizes},
        "quantization": config.quantization,
        "quality": artifact.manifest.get("quality"),
        "speed": artifact.manifest.get("speed"),
    }


def _licence(model: SourceModel, fetched: Fetched) -> str | None:
    """A stranger's text: shown and stored only where it is one plain line."""
    text = model.licence or fetched.licence
    return text if text is not None and text.isprintable() else None
