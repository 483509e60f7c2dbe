"""`ebb logs` and `ebb events`: what replicas print, and what changed and why."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from control_plane.cli.client import Api, Json, parse_json, segment, sse_data
from control_plane.cli.explain import print_decisions
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import clock, print_json, print_table, short, stderr

_POLL_S = 0.5
_WHOLE_LOG = 10_000  # lines; the most that is given

# Of a log line: what stands at its front, or says nothing new in the log of one endpoint.
_SHOWN = frozenset({"at", "level", "event", "process", "endpoint", "replica"})


def logs(
    name: Annotated[str, typer.Argument(help="The endpoint's name.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more is written.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Lines from the end.")] = 200,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print the logs of an endpoint's replicas, the newest last.

    On a terminal each line is shortened for reading; a pipe gets the JSON lines as they were written.
    """
    with Api.open(home) as api:
        text = _followed(api, name, tail) if follow else _log(api, f"/endpoints/{segment(name)}", tail, follow)
        for piece in map(readable, lines_of(text)) if sys.stdout.isatty() else text:
            sys.stdout.write(piece)
            sys.stdout.flush()


def _log(api: Api, path: str, tail: int, follow: bool) -> Iterator[str]:
    return api.stream(f"{path}/logs", {"tail": tail, "follow": "true" if follow else "false"}, "text/plain")


def _followed(api: Api, name: str, tail: int) -> Iterator[str]:
    """The logs of the replicas there are, then of each that comes after them: endpoints sleep, and wake again."""
    seen = {replica["id"] for replica in _replicas(api, name)}
    yield from _log(api, f"/endpoints/{segment(name)}", tail, True)
    while True:
        stderr().print(f"No replica of '{name}' runs. Its next one will be followed; Ctrl-C leaves.", style="dim")
        while not (new := [each for each in _replicas(api, name) if each["id"] not in seen]):
            time.sleep(_POLL_S)
        for replica in reversed(new):
            seen.add(replica["id"])
            yield from _log(api, f"/replicas/{segment(replica['id'])}", _WHOLE_LOG, True)


def _replicas(api: Api, name: str) -> list[Json]:
    """Those that have a log, newest first. Raises ApiFault where there is no such endpoint."""
    api.get(f"/endpoints/{segment(name)}")
    return [each for each in api.items("/replicas", {"endpoint": name}) if each["status"] != "placing"]


def lines_of(text: Iterator[str]) -> Iterator[str]:
    """Whole lines, each with its end, of a text that comes in pieces."""
    rest = ""
    for piece in text:
        *lines, rest = (rest + piece).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield f"{rest}\n"


def readable(line: str) -> str:
    """A structured line as `time level event key=value …`; any other line as it is."""
    try:
        fields: Any = json.loads(line)
    except ValueError:
        return line  # a runner's libraries print what they like
    if not isinstance(fields, dict) or "event" not in fields:
        return line
    known: Json = cast("Json", fields)
    head = (clock(known["at"]) if "at" in known else "", known.get("level", ""), known["event"])
    rest = (f"{key}={_value(value)}" for key, value in known.items() if key not in _SHOWN and value is not None)
    return "  ".join(part for part in (*map(str, head), " ".join(rest)) if part) + "\n"


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if " " in text else text


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more happens.")] = False,
    subject: Annotated[str | None, typer.Option("--subject", help="Only those of this endpoint, model or node.")] = (
        None
    ),
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many of the latest.")] = 50,
    requests: Annotated[
        bool, typer.Option("--requests", help="Instead: the last requests, which replica took each, and why.")
    ] = False,
    decisions: Annotated[
        bool, typer.Option("--decisions", help="Instead: what was decided on endpoints; with -o json, from what.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Print what changed, and why.

    With -f and -o json each event is one line of JSON.
    """
    if requests:
        return _requests(home, subject, limit, follow, output)
    if decisions:
        return _decisions(home, subject, limit, follow, output)
    params: dict[str, Any] = {"limit": limit} | ({"subject": subject} if subject else {})
    with Api.open(home) as api:
        items = api.items("/events", params)
        if output is Output.json and not follow:
            return print_json(items)
        width = max((len(item["subject"]) for item in items), default=0)
        for item in items:
            _print(item, output, width)
        if not items and not follow:
            print_table((), (), "Nothing has happened yet.")
        if follow:
            after: dict[str, Any] = {"after": items[-1]["id"]} if items else {}
            stream = api.stream("/events", params | after | {"follow": "true"}, "text/event-stream")
            for _, data in sse_data(stream):
                _print(parse_json(data), output, width)


def _requests(home: Path, endpoint: str | None, limit: int, follow: bool, output: Output) -> None:
    if follow:
        raise typer.BadParameter("--requests cannot be followed; ask again.", param_hint="--follow")
    with Api.open(home) as api:
        items = api.routed({"limit": limit} | ({"endpoint": endpoint} if endpoint else {}))
    if output is Output.json:
        return print_json(items)
    heads = ["at", "request", "endpoint", "replica", "reason", "matched", "prompt", "ttft", "status", "outcome"]
    print_table(heads, [request_row(item) for item in items], "No request has come yet.")


def _decisions(home: Path, endpoint: str | None, limit: int, follow: bool, output: Output) -> None:
    if follow:
        raise typer.BadParameter("--decisions cannot be followed; ask again.", param_hint="--follow")
    whole = {"whole": "true"} if output is Output.json else {}
    with Api.open(home) as api:
        params: dict[str, Any] = {"limit": limit, **whole} | ({"subject": endpoint} if endpoint else {})
        print_decisions(api.items("/decisions", params), output)


def request_row(item: Json) -> list[object]:
    """One request as the table shows it; tokens are about right, `ttft` is to the replica's first byte."""
    at = datetime.fromtimestamp(item["at"], UTC).isoformat()
    ttft = None if item["ttft_s"] is None else f"{item['ttft_s'] * 1000:.0f} ms"
    where = [short(item["request_id"]), item["endpoint"], short(item["replica"]), item["reason"]]
    return [clock(at), *where, item["matched_tokens"], item["prompt_tokens"], ttft, item["status"], item["outcome"]]


def _print(event: Json, output: Output, width: int) -> None:
    if output is Output.json:
        sys.stdout.write(json.dumps(event) + "\n")
    else:
        sys.stdout.write(f"{event_line(event, width)}\n")
    sys.stdout.flush()


def event_line(event: Json, width: int) -> str:
    """One event; `width` columns for whom it is about. A change of number is told with its numbers."""
    data: Json = event.get("data") or {}
    reason = event.get("reason") or ""
    if event["type"] == "scaled" and {"from", "to"} <= data.keys():
        reason = f"{data['from']} → {data['to']}: {reason}"
    return f"{clock(event['at'])}  {event['kind']:<8}  {event['subject']:<{width}}  {event['type']:<9}  {reason}"
