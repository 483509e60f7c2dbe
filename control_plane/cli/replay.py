"""`ebb simulate decision` and `ebb simulate events`: what was decided is asked again of the very files that decide."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from control_plane.cli.client import Api, Json
from control_plane.cli.errors import CliError
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import clock, print_json, print_table, stderr

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Ask with another value, such as limits.idle_s=300."),
]


def decision(
    decision_id: Annotated[int, typer.Argument(min=1, metavar="ID", help="As 'ebb events --decisions' shows it.")],
    change: SetOption = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Replay one stored decision through the same pure files; exit code 1 where the answer is another one.

    With --set the answer under other circumstances is shown, and the exit code is 0.
    """
    with Api.open(home) as api:
        stored = api.get(f"/decisions/{decision_id}")
    _show([stored], change or [], output)


def replay_all(
    from_events: Annotated[
        bool, typer.Option("--from-events", help="Replay what this platform has decided, the last decisions of it.")
    ] = False,
    subject: Annotated[str | None, typer.Option("--subject", help="Only those on this endpoint.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many of the latest.")] = 100,
    change: SetOption = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Replay the platform's own last decisions, and count where another version or policy decides otherwise."""
    if not from_events:
        raise typer.BadParameter("Say --from-events, or name one: 'ebb simulate decision ID'.")
    params: dict[str, Any] = {"limit": limit, "whole": "true"} | ({"subject": subject} if subject else {})
    with Api.open(home) as api:
        items = api.items("/decisions", params)
    _show(items, change or [], output)


def _show(items: Sequence[Json], changes: Sequence[str], output: Output) -> None:
    from control_plane.simulator.decisions import parse_changes, replay  # only who replays pays for it
    from control_plane.simulator.errors import SimulationError

    try:
        asked = parse_changes(changes)
        told = [replay(item, asked) for item in items]
    except SimulationError as error:
        raise CliError(str(error)) from error
    other = sum(each.same is False for each in told)
    if output is Output.json:
        print_json([asdict(each) for each in told])
    else:
        words = {True: "the same", False: "ANOTHER", None: "asked for"}
        rows = [(e.id, clock(e.at), e.subject, e.kind, e.then, e.now, words[e.same], e.reason) for e in told]
        print_table(("id", "at", "endpoint", "decision", "then", "now", "answer", "why now"), rows, "None was stored.")
        stderr().print(f"{len(told)} replayed: {other} answered otherwise.")
    if other and not changes:
        raise typer.Exit(1)
