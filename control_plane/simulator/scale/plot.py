"""Draws a comparison of scaling policies: cold share against memory, waits, objective. Needs matplotlib."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.scale.compare import Figures

_COLOUR = "#3b6ea5"


def draw(figures: Sequence[Figures], title: str, path: Path) -> None:
    """Write the picture to `path`, in the format of its ending. Raises SimulationError where it cannot be written."""
    # by name, because nobody else needs it and few have it
    picture: Any = import_module("matplotlib.figure").Figure(figsize=(12, 4), layout="constrained")
    trade, waits, met = picture.subplots(1, 3)
    picture.suptitle(title, fontsize=9)
    for one in figures:
        trade.plot(one.memory_hours, one.cold_share, marker="o", color=_COLOUR)
        trade.annotate(one.policy, (one.memory_hours, one.cold_share), fontsize=8)
    trade.set_title("cold share against GB-hours", fontsize=9)
    names = [one.policy for one in figures]
    waits.bar(names, [one.wait_p95_s for one in figures], color=_COLOUR)
    waits.plot(names, [one.wait_p99_s for one in figures], linestyle="none", marker="x", color="black")
    waits.set_title("wait, seconds: bar p95, cross p99", fontsize=9)
    met.bar(names, [one.slo_attainment for one in figures], color=_COLOUR)
    met.set_title("share within the objective", fontsize=9)
    for axes in (waits, met):
        axes.tick_params(axis="x", labelrotation=30, labelsize=8)
    try:
        picture.savefig(path)
    except (OSError, ValueError) as error:
        raise SimulationError(f"The plot cannot be written to {path}: {error}.") from error
