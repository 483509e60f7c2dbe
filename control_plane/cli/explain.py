"""`ebb explain` and `ebb events --decisions`: why an endpoint is as it is, and what was decided on it."""

from typing import Annotated

import typer

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import clock, print_json, print_table, sentence


def explain(
    name: Annotated[str, typer.Argument(help="The endpoint's name.")],
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Tell in sentences why an endpoint is in the state it is in, and what was last decided on it.

    While it waits for memory: how much it needs, how much is free, and who holds the rest.
    """
    with Api.open(home) as api:
        told = api.get(f"/endpoints/{segment(name)}/explain")
    if output is Output.json:
        return print_json(told)
    for line in told["sentences"]:
        typer.echo(sentence(line))
    if told["decisions"]:
        typer.echo("\nThe last decisions on it:")
    for each in told["decisions"]:
        typer.echo(f"  {clock(each['at'])}  {each['kind']}  {sentence(each['reason'])} [{each['id']}]")


def print_decisions(items: list[Json], output: Output) -> None:
    """For `ebb events --decisions`."""
    if output is Output.json:
        return print_json(items)
    rows = [(each["id"], clock(each["at"]), each["subject"], each["kind"], each["reason"]) for each in items]
    print_table(("id", "at", "endpoint", "decision", "reason"), rows, "Nothing was decided yet.")
