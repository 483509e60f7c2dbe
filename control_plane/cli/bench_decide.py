"""`ebb bench decide`: what deciding how many replicas there are costs, by the number of endpoints."""

from dataclasses import asdict
from typing import Annotated

import typer

from control_plane.cli.options import Output, OutputOption
from control_plane.cli.output import print_json, print_table

MOST_ENDPOINTS = 100_000


def decide(
    endpoints: Annotated[str, typer.Option("--endpoints", help="How many there are, one case each.")] = "10,100,1000",
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Medians of so many.")] = 5,
    output: OutputOption = Output.table,
) -> None:
    """Measure the autoscaler's pure files on made-up endpoints, in CPU time: none is asleep, for those cost nothing.

    `working`: all have work, a latency to hold, and two gateways' reports of a quarter of an hour. `idle`: none has
    work, and each is kept by a plan. `planning`: the plan itself, made once per idle time.
    """
    sizes = _sizes(endpoints)
    from control_plane.simulator.deciding import measure  # only who measures pays for it

    costs = [measure(size, rounds) for size in sizes]
    if output is Output.json:
        return print_json([asdict(cost) for cost in costs])
    rows = [
        (
            cost.endpoints,
            *(f"{ms:.2f} ms" for ms in (cost.working_ms, cost.idle_ms, cost.planning_ms)),
            f"{1000 * cost.working_ms / cost.endpoints:.0f} us",
        )
        for cost in costs
    ]
    print_table(("endpoints", "working", "idle", "planning", "working, each"), rows, "")


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    sizes = [int(part) for part in parts if part.isdecimal() and len(part) < 7]
    if len(sizes) < len(parts) or not all(1 <= size <= MOST_ENDPOINTS for size in sizes):
        raise typer.BadParameter(
            f"'{text[:40]}' is no list of numbers from 1 to {MOST_ENDPOINTS}. Write it like 10,100,1000."
        )
    return sizes
