"""Draws a comparison of routing: hits, times and balance side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_plane.simulator.figures import Figures
from control_plane.simulator.report import bars, draw_in_three


def draw(figures: Sequence[Figures], title: str, path: Path) -> None:
    """Write the picture to `path`. Raises SimulationError where it cannot be written."""

    def fill(hits: Any, times: Any, balance: Any) -> None:
        bars(hits, figures, lambda one: one.hit_share, "share of blocks found")
        for share, label, line in (
            (figures[0].ideal_same_caches, "ideal, same caches", "--"),
            (figures[0].ideal_infinite, "ideal, infinite caches", ":"),
        ):
            hits.axhline(share, color="black", linestyle=line, linewidth=1, label=label)
        hits.legend(fontsize=7)
        bars(times, figures, lambda one: one.ttft_mean_s, "TTFT, seconds: bar mean, line p50, cross p99")
        places, black = range(len(figures)), {"linestyle": "none", "color": "black"}
        times.plot(places, [one.ttft_p50_s for one in figures], marker="_", markersize=18, **black)
        times.plot(places, [one.ttft_p99_s for one in figures], marker="x", **black)
        times.set_yscale("log")
        bars(balance, figures, lambda one: one.max_over_mean_load, "load, max over mean")
        balance.axhline(1.0, color="black", linewidth=1)

    draw_in_three(title, path, fill)
