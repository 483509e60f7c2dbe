"""`ebb bench place`: what deciding where replicas go costs, by the size of the fleet."""

from dataclasses import asdict
from typing import Annotated

import typer

from control_plane.cli.options import Output, OutputOption
from control_plane.cli.output import print_json, print_table

MOST_ENDPOINTS = 100_000


def place(
    endpoints: Annotated[str, typer.Option("--endpoints", help="Sizes of the fleet, by its endpoints.")] = (
        "10,100,1000"
    ),
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Medians of so many.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of the fleet that is made up.")] = 0,
    output: OutputOption = Output.table,
) -> None:
    """Measure the placement's pure files on made-up fleets: five endpoints and eight GPUs to a node.

    A decision is one endpoint's wake, with the whole fleet taken in; a round wakes a tenth of all endpoints at once, on
    a fleet that is half empty and on a full one, where idle replicas make room.
    """
    sizes = _sizes(endpoints)
    from control_plane.simulator.placing import measure  # only who measures pays for it

    costs = [measure(size, is_full=full, rounds=rounds, seed=seed) for full in (False, True) for size in sizes]
    if output is Output.json:
        return print_json([asdict(cost) for cost in costs])
    columns = ("endpoints", "nodes", "devices", "fleet", "decision", "round", "per wake", "placed", "evicting")
    rows = [
        (
            *(cost.endpoints, cost.nodes, cost.devices, cost.fullness),
            *(f"{ms:.2f} ms" for ms in (cost.decision_ms, cost.round_ms, cost.per_wake_ms)),
            *(cost.placed, cost.evicting),
        )
        for cost in costs
    ]
    print_table(columns, rows, "Nothing was measured.")


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() and 1 <= int(part) <= MOST_ENDPOINTS for part in parts):
        raise typer.BadParameter(
            f"'{text[:60]}' is no list of whole numbers from 1 to {MOST_ENDPOINTS}: 10,100,1000.",
            param_hint="--endpoints",
        )
    return [int(part) for part in parts]
