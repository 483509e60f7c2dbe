"""What is built, refused, forced or passed over, with a judge whose verdicts are given."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_artifact import ORIGIN
from test_quantize import random_model

from data_plane.weights.building import Wanted, build_judged, build_plain
from data_plane.weights.errors import ModelError
from data_plane.weights.mapped import MappedArtifact, open_mapped, verify_artifact
from data_plane.weights.progress import Progress
from data_plane.weights.quality import Position, QualityError, Record

WIDE = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96}


class Judge:
    """`losses`: what each quantization adds to a token's loss. `speeds`: its score."""

    candidates: tuple[str, ...] = ("int4", "int8")

    def __init__(self, losses: Mapping[str, float] | None = None, speeds: Mapping[str, float] | None = None) -> None:
        self.losses, self.speeds = losses or {}, speeds or {}
        self.asked: list[str] = []

    def unable(self, quantization: str) -> str | None:
        return "there is no GPU here; choose int8" if quantization == "fp8" else None

    def record(self, folder: Path, tell: Callable[[int, int], None]) -> Record:
        quantization = open_mapped(folder).config.quantization
        self.asked.append(quantization)
        tell(0, 10)
        tell(10, 10)
        loss = self.losses.get(quantization, 0.0)
        if loss > 100:
            raise QualityError("the model fails on the fixed text: nan")
        return Record([[Position(1, -1.0 - loss, {1: -1.0 - loss})]], [[1, 2]])

    def ranges(self, folder: Path) -> Mapping[str, torch.Tensor]:
        assert open_mapped(folder).config.quantization == "none"
        self.asked.append("ranges")
        return {}

    def speed(self, folder: Path) -> dict[str, float]:
        return {"score": self.speeds.get(open_mapped(folder).config.quantization, 1.0)}


def build(
    root: Path, quantization: str, judge: Judge, *, force: bool = False, sizes: Mapping[str, Any] = WIDE
) -> tuple[MappedArtifact, list[tuple[str, int, int]]]:
    told: list[tuple[str, int, int]] = []
    progress = Progress(lambda stage, done, total: told.append((stage, done, total)))
    path = build_judged(random_model(**sizes), ORIGIN, Wanted(quantization, force, root), judge, progress)
    verify_artifact(path)
    assert [p.name for p in root.iterdir() if p.is_dir()] == [path.name], "only what was chosen is left"
    return open_mapped(path), told


def test_what_passes_is_kept_with_its_figures(tmp_path: Path) -> None:
    judge = Judge({"int8": 0.01}, {"int8": 7.0})
    made, told = build(tmp_path, "int8", judge)
    assert made.config.quantization == "int8"
    assert made.manifest["quality"]["perplexity_ratio"] == pytest.approx(1.01005, rel=1e-4)
    assert made.manifest["speed"] == {"score": 7.0}
    assert judge.asked == ["ranges", "none", "int8"]
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["convert", "write", "evaluate"]
    assert all(0 <= done <= total for _, done, total in told)
    assert told[-1] == ("evaluate", 20, 20)


def test_what_is_over_its_limit_is_refused_unless_forced(tmp_path: Path) -> None:
    judge = Judge({"int8": 0.05})
    with pytest.raises(QualityError, match=r"int8 raises the perplexity by 5\.1%, more than the 2% allowed"):
        build(tmp_path, "int8", judge)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    made, _ = build(tmp_path, "int8", judge, force=True)
    assert made.manifest["quality"]["perplexity_ratio"] > 1.05


def test_plain_weights_are_not_measured(tmp_path: Path) -> None:
    progress = Progress(lambda stage, done, total: None)
    path = build_plain(random_model(), ORIGIN, Wanted("none", False, tmp_path), progress)
    manifest = open_mapped(path).manifest
    assert "quality" not in manifest and "speed" not in manifest


@pytest.mark.parametrize(
    ("losses", "speeds", "best"),
    [
        ({}, {"none": 1, "int8": 2, "int4": 3}, "int4"),
        ({"int4": 0.07}, {"none": 1, "int8": 2, "int4": 3}, "int8"),
        ({"int4": 200.0}, {"none": 1, "int8": 2, "int4": 3}, "int8"),
        ({"int4": 0.07, "int8": 0.03}, {"none": 1, "int8": 2, "int4": 3}, "none"),
        ({}, {"none": 4, "int8": 2, "int4": 3}, "none"),
    ],
)
def test_auto(tmp_path: Path, losses: dict[str, float], speeds: dict[str, float], best: str) -> None:
    made, _ = build(tmp_path, "auto", Judge(losses, speeds))
    assert made.config.quantization == best
    assert made.manifest["speed"]["score"] == speeds[best]
    assert ("quality" in made.manifest) == (best != "none")


def test_auto_passes_over_what_the_sizes_forbid(tmp_path: Path) -> None:
    judge = Judge({}, {"none": 1, "int8": 2, "int4": 3})
    made, _ = build(tmp_path, "auto", judge, sizes={})
    assert made.config.quantization == "int8"
    assert "int4" not in judge.asked
    with pytest.raises(ModelError, match="groups of 32"):
        build(tmp_path, "int4", judge, sizes={})


def test_what_this_machine_cannot_run_is_made_only_by_force(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no GPU here; choose int8, or --force to make it unmeasured"):
        build(tmp_path, "fp8", Judge())
    made, _ = build(tmp_path, "fp8", Judge(), force=True)
    assert made.config.quantization == "fp8"
    assert "quality" not in made.manifest
