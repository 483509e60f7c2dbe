"""`ebb logs` and `ebb events`: what replicas print, and what changed and why."""

import json
import sys
from typing import Annotated, Any

import typer

from control_plane.cli.client import Api, Json, parse_json, segment, sse_data
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import print_json, print_table


def logs(
    name: Annotated[str, typer.Argument(help="The endpoint's name.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more is written.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Lines from the end.")] = 200,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print the logs of an endpoint's replicas, the newest last."""
    params: dict[str, Any] = {"tail": tail, "follow": "true" if follow else "false"}
    with Api.open(home) as api:
        for text in api.stream(f"/endpoints/{segment(name)}/logs", params, "text/plain"):
            sys.stdout.write(text)
            sys.stdout.flush()


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more happens.")] = False,
    subject: Annotated[str | None, typer.Option("--subject", help="Only those of this endpoint, model or node.")] = (
        None
    ),
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many of the latest.")] = 50,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Print what changed, and why.

    With -f and -o json each event is one line of JSON.
    """
    params: dict[str, Any] = {"limit": limit} | ({"subject": subject} if subject else {})
    with Api.open(home) as api:
        items = api.items("/events", params)
        if output is Output.json and not follow:
            return print_json(items)
        for item in items:
            _print(item, output)
        if not items and not follow:
            print_table((), (), "Nothing has happened yet.")
        if follow:
            after: dict[str, Any] = {"after": items[-1]["id"]} if items else {}
            stream = api.stream("/events", params | after | {"follow": "true"}, "text/event-stream")
            for _, data in sse_data(stream):
                _print(parse_json(data), output)


def _print(event: Json, output: Output) -> None:
    if output is Output.json:
        sys.stdout.write(json.dumps(event) + "\n")
    else:
        at = str(event["at"])[:19].replace("T", " ")
        reason = event.get("reason") or ""
        sys.stdout.write(f"{at}  {event['kind']:<8}  {event['subject']:<24}  {event['type']:<12}  {reason}\n")
    sys.stdout.flush()
