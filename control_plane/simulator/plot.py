"""Draws a comparison: hits, times and balance side by side. Needs matplotlib, which nothing else of Ebb does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.figures import Figures

_BARS = "#3b6ea5"


def draw(figures: Sequence[Figures], title: str, path: Path) -> None:
    """Write the picture to `path`, in the format of its ending. Raises SimulationError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only who draws needs it
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(picture)
    hits, times, balance = picture.subplots(1, 3)
    picture.suptitle(title, fontsize=9)
    _bars(hits, figures, lambda one: one.hit_share, "share of blocks found")
    for share, label, line in (
        (figures[0].ideal_same_caches, "ideal, same caches", "--"),
        (figures[0].ideal_infinite, "ideal, infinite caches", ":"),
    ):
        hits.axhline(share, color="black", linestyle=line, linewidth=1, label=label)
    hits.legend(fontsize=7)
    _bars(times, figures, lambda one: one.ttft_mean_s, "TTFT, seconds: bar mean, line p50, cross p99")
    places = range(len(figures))
    times.plot(places, [one.ttft_p50_s for one in figures], linestyle="none", marker="_", color="black", markersize=18)
    times.plot(places, [one.ttft_p99_s for one in figures], linestyle="none", marker="x", color="black")
    times.set_yscale("log")
    _bars(balance, figures, lambda one: one.max_over_mean_load, "load, max over mean")
    balance.axhline(1.0, color="black", linewidth=1)
    try:
        picture.savefig(path)
    except (OSError, ValueError) as error:
        raise SimulationError(f"The plot cannot be written to {path}: {error}.") from error


def _bars(axes: Any, figures: Sequence[Figures], value: Callable[[Figures], float], name: str) -> None:
    axes.bar([one.policy for one in figures], [value(one) for one in figures], color=_BARS)
    axes.set_title(name, fontsize=9)
    axes.tick_params(axis="x", labelrotation=30, labelsize=8)
