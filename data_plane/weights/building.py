"""From a source model to the artifact that was asked for: plain, quantized and judged, or the best of several.

Knows nothing of how a model is run: whoever can run one, a `Judge`, says what each artifact makes of a fixed text and
how fast it is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from data_plane.weights.artifact import Draft, Origin, draft, publish
from data_plane.weights.encode import Contents, plain_contents, quantized_contents
from data_plane.weights.errors import ModelError
from data_plane.weights.progress import Progress
from data_plane.weights.quality import QualityError, Record, compare, refusal
from data_plane.weights.scratch import scratch_folder
from data_plane.weights.smoothing import smoothed
from data_plane.weights.source_model import SourceModel
from data_plane.weights.sources import require_space

QUANTIZATIONS = ("none", "int8", "int4", "fp8", "auto")


class Judge(Protocol):
    """Runs artifacts on this machine."""

    candidates: tuple[str, ...]
    """Quantizations worth trying here when nobody names one."""

    def unable(self, quantization: str) -> str | None:
        """Why this machine cannot run that quantization, as a sentence; None where it can."""
        ...

    def record(self, folder: Path, tell: Callable[[int, int], None]) -> Record:
        """What the artifact makes of the fixed text, or QualityError if it fails. `tell`: tokens done, and in all."""
        ...

    def ranges(self, folder: Path) -> Mapping[str, Tensor]:
        """For the matrices of an unquantized artifact, the largest magnitude of each input channel, float32 [in]."""
        ...

    def speed(self, folder: Path) -> dict[str, float]:
        """Tokens a second by case (`…_tps`), and one `score` to compare artifacts by."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """`quantization`: one of QUANTIZATIONS. `force`: whatever the quality gate says."""

    quantization: str
    force: bool
    artifacts: Path


@dataclass(frozen=True, slots=True)
class _Judged:
    """`refused`: why it may not be served, if it may not."""

    made: Draft
    quality: dict[str, float] | None
    refused: str | None = None


def build_plain(model: SourceModel, origin: Origin, wanted: Wanted, progress: Progress) -> Path:
    """The folder of the artifact of unquantized weights, which appears whole or not at all."""
    return _build_unmeasured(model, origin, wanted, progress, plain_contents(model.config, model.read_tensor))


def build_judged(model: SourceModel, origin: Origin, wanted: Wanted, judge: Judge, progress: Progress) -> Path:
    """The folder of the artifact, which appears whole or not at all.

    QualityError for a quantization that is over its limit, ModelError for one that the model or this machine cannot
    do; under `auto` such candidates are passed over, and the unquantized weights are what is left at worst.
    """
    automatic = wanted.quantization == "auto"
    if not automatic and (reason := judge.unable(wanted.quantization)) is not None:
        if not wanted.force:
            raise ModelError(f"{reason}, or --force to make it unmeasured")
        return _build_unmeasured(model, origin, wanted, progress, quantized_contents(model, wanted.quantization))
    names = judge.candidates if automatic else (wanted.quantization,)
    wanted.artifacts.mkdir(parents=True, exist_ok=True)
    with scratch_folder(wanted.artifacts) as scratch:
        # the unquantized artifact is drafted first, so it is there when int8's first tensor is read
        smooth = smoothed(model, lambda: judge.ranges(scratch / "none"))
        sources = {name: smooth if name == "int8" else model for name in names}
        contents = {"none": plain_contents(model.config, model.read_tensor), **_quantized(sources, automatic)}
        _require_space(wanted.artifacts, contents.values())
        judged = _judge(_drafts(scratch, contents, model, origin, progress), judge, progress)
        if automatic:
            return _publish_fastest(wanted.artifacts, judged, judge)
        chosen = judged[wanted.quantization]
        if chosen.refused is not None and not wanted.force:
            raise QualityError(chosen.refused)
        return _publish(wanted.artifacts, chosen, judge.speed(chosen.made.folder))


def _build_unmeasured(
    model: SourceModel, origin: Origin, wanted: Wanted, progress: Progress, contents: Contents
) -> Path:
    _require_space(wanted.artifacts, [contents])
    with scratch_folder(wanted.artifacts) as scratch:
        drafts = _drafts(scratch, {wanted.quantization: contents}, model, origin, progress)
        return publish(wanted.artifacts, drafts[wanted.quantization], {})


def _require_space(artifacts: Path, contents: Iterable[Contents]) -> None:
    artifacts.mkdir(parents=True, exist_ok=True)
    require_space(artifacts, sum(each.num_bytes for each in contents), "the artifact")


def _quantized(sources: Mapping[str, SourceModel], automatic: bool) -> dict[str, Contents]:
    contents: dict[str, Contents] = {}
    for name, model in sources.items():
        try:
            contents[name] = quantized_contents(model, name)
        except ModelError:
            # sizes that this form cannot hold: one candidate less
            if not automatic:
                raise
    return contents


def _drafts(
    scratch: Path, contents: Mapping[str, Contents], model: SourceModel, origin: Origin, progress: Progress
) -> dict[str, Draft]:
    """All of them written, told as one stage."""
    total, before = sum(each.num_bytes for each in contents.values()), 0
    drafts: dict[str, Draft] = {}
    for name, each in contents.items():

        def convert(done: int, of: int, share: int = each.num_bytes, start: int = before) -> None:
            # a file is a little more than its tensors
            progress.update("convert", start + share * done // of, total)

        drafts[name] = draft(scratch / name, each, model.tokenizer, origin, convert)
        before += each.num_bytes
    written = sum(made.manifest["bytes"] for made in drafts.values())
    progress.update("write", written, written)
    return drafts


def _judge(drafts: Mapping[str, Draft], judge: Judge, progress: Progress) -> dict[str, _Judged]:
    """Each against the first, which is the unquantized one."""
    judged: dict[str, _Judged] = {}
    reference: Record | None = None
    for at, (name, made) in enumerate(drafts.items()):

        def tell(done: int, of: int, at: int = at) -> None:
            progress.update("evaluate", at * of + done, len(drafts) * of)

        try:
            record = judge.record(made.folder, tell)
            if reference is None:
                reference = record
                judged[name] = _Judged(made, None)
            else:
                figures = compare(reference, record)
                judged[name] = _Judged(made, figures, refusal(name, figures))
        except QualityError as error:
            if reference is None:
                raise
            judged[name] = _Judged(made, None, str(error))
    return judged


def _publish_fastest(root: Path, judged: Mapping[str, _Judged], judge: Judge) -> Path:
    """Of those within their limits, the unquantized one among them, the one of the highest score."""
    speeds = {name: judge.speed(each.made.folder) for name, each in judged.items() if each.refused is None}
    best = max(speeds, key=lambda name: speeds[name]["score"])
    return _publish(root, judged[best], speeds[best])


def _publish(root: Path, chosen: _Judged, speed: dict[str, float]) -> Path:
    measured: dict[str, Any] = {"speed": speed}
    if chosen.quality is not None:
        measured["quality"] = chosen.quality
    return publish(root, chosen.made, measured)
