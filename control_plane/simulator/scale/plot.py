"""Draws a comparison of scaling policies: cold share against memory, waits, objective."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from control_plane.simulator.report import COLOUR, bars, draw_in_three
from control_plane.simulator.scale.compare import Figures


def draw(figures: Sequence[Figures], title: str, path: Path) -> None:
    """Write the picture to `path`. Raises SimulationError where it cannot be written."""

    def fill(trade: Any, waits: Any, met: Any) -> None:
        for one in figures:
            trade.plot(one.memory_hours, one.cold_share, marker="o", color=COLOUR)
            trade.annotate(one.policy, (one.memory_hours, one.cold_share), fontsize=8)
        trade.set_title("cold share against GB-hours", fontsize=9)
        bars(waits, figures, lambda one: one.wait_p95_s, "wait, seconds: bar p95, cross p99")
        p99_s = [one.wait_p99_s for one in figures]
        waits.plot(range(len(figures)), p99_s, linestyle="none", marker="x", color="black")
        bars(met, figures, lambda one: one.slo_attainment, "share within the objective")

    draw_in_three(title, path, fill)
