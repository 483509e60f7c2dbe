"""`ebb deploy`, `ps`, `scale`, `wake`, `rm`: endpoints, the things with a URL."""

from pathlib import Path
from typing import Annotated

import typer

from control_plane.catalog.quantization import AUTO
from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import ApiFault, CliError
from control_plane.cli.models import make_artifact
from control_plane.cli.options import (
    DEFAULT_HOME,
    IDLE,
    SLO_ITL,
    SLO_TTFT,
    HomeOption,
    Output,
    OutputOption,
    QuantOption,
    idle_body,
)
from control_plane.cli.output import print_json, print_table, stderr
from control_plane.cli.progress import wait_until
from control_plane.cli.starts import print_starts, start_of
from control_plane.endpoints.idle import IDLE_AUTO

NameArgument = Annotated[str, typer.Argument(help="The endpoint's name.")]
WAIT_S = 300.0


def deploy(
    name: NameArgument,
    model: Annotated[str, typer.Option("--model", "-m", help="A model of the catalog.")],
    min_replicas: Annotated[int, typer.Option("--min", help="Replicas that always run.")] = 0,
    max_replicas: Annotated[int, typer.Option("--max", help="Replicas at most.")] = 1,
    idle_s: Annotated[str, IDLE] = IDLE_AUTO,
    context: Annotated[int, typer.Option("--context", help="Tokens of context; 0: the model's own.")] = 0,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Requests a replica runs at once.")] = 32,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = "auto",
    quant: QuantOption = AUTO,
    slo_ttft_ms: Annotated[float | None, SLO_TTFT] = None,
    slo_itl_ms: Annotated[float | None, SLO_ITL] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until its URL answers (with --min: until it is live).")] = (
        False
    ),
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Give a model a URL, or change how an endpoint runs.

    With --min 0 it sleeps until a request arrives. With --quant auto it serves the fastest of the model's artifacts;
    one that it names and that is not there yet is made first. With --idle auto it is kept, and woken ahead of requests,
    by its own idle times. With --slo-ttft and --slo-itl it has as many replicas as hold that latency.
    """
    body: Json = {
        **{"name": name, "model": model, "min": min_replicas, "max": max_replicas, "idle_s": idle_body(idle_s)},
        **{"context": context, "concurrency": concurrency, "dtype": dtype, "quant": quant},
    }
    slo = {"ttft_p95_ms": slo_ttft_ms, "itl_p95_ms": slo_itl_ms}
    if any(slo.values()):
        body["slo"] = {name: value for name, value in slo.items() if value is not None}
    with Api.open(home) as api:
        endpoint = _post(api, body)
        if wait:
            endpoint = wait_deployed(api, name)
    if output is Output.json:
        return print_json(endpoint)
    stderr().print(f"Endpoint '{name}' (revision {endpoint['revision']}) serves '{model}' in {endpoint['quant']} at:")
    typer.echo(endpoint["url"])
    stderr().print(f"Talk to it with 'ebb chat {name}{_flag(home)}'.")


def _post(api: Api, body: Json) -> Json:
    """The endpoint; the artifact that it needs and that is not there is made on the way."""
    try:
        return api.post("/endpoints", body)
    except ApiFault as fault:
        if fault.code != "artifact_missing":
            raise
    make_artifact(api, body["model"], body["quant"], wait=True)
    return api.post("/endpoints", body)


def wait_deployed(api: Api, name: str) -> Json:
    """The endpoint once its URL answers and, if it has a minimum, a replica is ready. Raises CliError if it fails."""

    def check() -> str | None:
        found = api.get(f"/endpoints/{segment(name)}")
        if found["state"] == "failed":
            raise CliError(f"Endpoint '{name}' cannot start: {found['reason']} See 'ebb logs {name}'.")
        if found["min"] > 0 and found["state"] != "live":
            return found["phase"] or found["state"]
        if api.infer_status(f"/e/{segment(name)}/v1/models") != 200:
            return "the gateway does not know it yet"
        return None

    wait_until(check, WAIT_S, f"endpoint '{name}'")
    return api.get(f"/endpoints/{segment(name)}")


def ps(
    starts: Annotated[bool, typer.Option("--starts", help="The last cold starts instead, with their phases.")] = False,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """List the endpoints, or what their last cold starts took.

    Examples: `ebb ps`, `ebb ps --starts`, `ebb ps --starts -o json`.
    """
    with Api.open(home) as api:
        items = api.items("/replicas" if starts else "/endpoints")
    if starts:
        told = [start_of(replica) for replica in items]
        return print_json(told) if output is Output.json else print_starts(told)
    if output is Output.json:
        return print_json(items)
    rows = [
        (
            *(item["endpoint"], item["model"], item["quant"], item["state"], f"{item['ready']}/{item['desired']}"),
            *(f"{item['min']}..{item['max']}", idle_text(item), item["url"], note_of(item)),
        )
        for item in items
    ]
    columns = ("endpoint", "model", "quant", "state", "ready", "min..max", "idle", "url", "note")
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table(columns, rows, "No endpoints yet. Make one: ebb deploy chat --model MODEL")


def note_of(endpoint: Json) -> str:
    """What the state alone does not say: how far a wake is, why something failed."""
    said = (endpoint["phase"], endpoint["reason"])
    return "" if endpoint["state"] in ("live", "zero") else ": ".join(part for part in said if part)


def idle_text(endpoint: Json) -> str:
    """`30 s`, or `auto`."""
    idle = endpoint["idle_s"]
    return str(idle) if idle == IDLE_AUTO else f"{idle:g} s"


def scale(
    name: NameArgument,
    min_replicas: Annotated[int | None, typer.Option("--min", help="Replicas that always run.")] = None,
    max_replicas: Annotated[int | None, typer.Option("--max", help="Replicas at most.")] = None,
    idle_s: Annotated[str | None, IDLE] = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Change how many replicas an endpoint may have, and when it sleeps."""
    wanted = {"min": min_replicas, "max": max_replicas, "idle_s": None if idle_s is None else idle_body(idle_s)}
    body: Json = {field: value for field, value in wanted.items() if value is not None}
    if not body:
        raise typer.BadParameter("Say what to change: --min N, --max N, --idle auto or --idle SECONDS.")
    with Api.open(home) as api:
        endpoint = api.patch(f"/endpoints/{segment(name)}", body)
    if output is Output.json:
        return print_json(endpoint)
    idle = "and sleeps by its idle times" if endpoint["idle_s"] == IDLE_AUTO else f"asleep after {idle_text(endpoint)}"
    stderr().print(f"Endpoint '{name}': {endpoint['min']} to {endpoint['max']} replicas, {idle}.")


def wake(
    name: NameArgument,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until a replica is ready.")] = True,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Start a replica before the first request does."""
    with Api.open(home) as api:
        endpoint = api.post(f"/endpoints/{segment(name)}/wake")
        if wait:
            endpoint = _wait_live(api, name)
    if output is Output.json:
        return print_json(endpoint)
    stderr().print(f"Endpoint '{name}' is {endpoint['state']}.")


def _wait_live(api: Api, name: str) -> Json:
    def check() -> str | None:
        found = api.get(f"/endpoints/{segment(name)}")
        if found["state"] == "failed":
            raise CliError(f"Endpoint '{name}' cannot start: {found['reason']} See 'ebb logs {name}'.")
        return None if found["ready"] else found["phase"] or found["state"]

    wait_until(check, WAIT_S, f"waking '{name}'")
    return api.get(f"/endpoints/{segment(name)}")


def rm(
    names: Annotated[list[str], typer.Argument(help="The endpoints' names.")], home: HomeOption = DEFAULT_HOME
) -> None:
    """Remove endpoints. Their URLs answer 404 at once; requests under way may end."""
    with Api.open(home) as api:
        for name in names:
            api.delete(f"/endpoints/{segment(name)}")
            stderr().print(f"Endpoint '{name}' is removed.")


def _flag(home: Path) -> str:
    return "" if home == DEFAULT_HOME else f" --home {home}"
