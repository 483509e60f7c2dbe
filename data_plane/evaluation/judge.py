"""This machine as a judge of artifacts: which it can run, how well they predict, how fast they are."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from data_plane.evaluation import measure
from data_plane.evaluation.calibrate import input_ranges
from data_plane.weights.quality import Record


class LocalJudge:
    """Runs artifacts on the first CUDA device, or on the CPU where there is none. A `data_plane.weights` Judge."""

    def __init__(self) -> None:
        self.device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self.candidates: tuple[str, ...] = ("fp8",) if self.device != "cpu" else ("int4", "int8")

    def unable(self, quantization: str) -> str | None:
        """Why this machine cannot run that quantization, as a sentence; None where it can."""
        if quantization == "fp8" and self.device == "cpu":
            return "fp8 is multiplied by GPUs only, and this machine has no CUDA device; choose int8 or int4"
        return None

    def record(self, folder: Path, tell: Callable[[int, int], None]) -> Record:
        """What the artifact makes of the fixed text, or QualityError if it fails. `tell`: tokens done, and in all."""
        return measure.record(folder, self.device, tell)

    def ranges(self, folder: Path) -> Mapping[str, torch.Tensor]:
        """For the matrices of the unquantized artifact, the largest magnitude of each input channel, float32 [in]."""
        return input_ranges(folder, self.device)

    def speed(self, folder: Path) -> dict[str, float]:
        """Tokens a second by case (`…_tps`), and one `score` to compare artifacts by."""
        return measure.speed(folder, self.device)
