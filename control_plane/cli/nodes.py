"""`ebb nodes`: the machines that run replicas, what they have, and who may become one."""

import time
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.status import Status

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import CliError
from control_plane.cli.keys import seconds_of
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, examples_of
from control_plane.cli.output import ago, print_json, print_table, size, stderr

app = typer.Typer(
    help="List the machines, let others join, and move replicas between them.",
    invoke_without_command=True,
    epilog=examples_of("ebb nodes", "ebb nodes -o json", "ebb nodes token --ttl 1h", "ebb nodes drain gpu-2"),
)
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The node's name, as 'ebb nodes' shows it.")]
_POLL_S = 0.5


@app.callback()
def nodes(context: typer.Context, home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """List the machines and what they have free; or let others join, and move replicas between them."""
    if context.invoked_subcommand is None:
        list_nodes(home, output)


@app.command("ls", epilog=examples_of("ebb nodes ls", "ebb nodes ls -o json"))
def list_nodes(home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """List the machines and what they have free."""
    with Api.open(home) as api:
        items = api.items("/nodes")
    if output is Output.json:
        return print_json(items)
    rows = [
        (
            *(node["name"], node.get("state", node["status"]), node["host"], node["cpus"]),
            f"{size(node['memory_free_bytes'])} of {size(node['memory_bytes'])}",
            ", ".join(f"{device['kind']}:{device['index']}" for device in node["devices"]),
            node["replicas"] if isinstance(node["replicas"], int) else len(node["replicas"]),
            *(_lease(node), node.get("epoch"), ago(node["last_seen_at"])),
        )
        for node in items
    ]
    columns = ("name", "state", "host", "cpus", "memory free", "devices", "replicas", "lease", "epoch", "seen")
    print_table(columns, rows, "No nodes. The node agent's log may tell why: 'ebb doctor' names it.")


def _lease(node: Json) -> str:
    """How much is left of it, of how much."""
    if "lease_s" not in node or node["status"] == "joined":
        return "-"
    left_s = float(node["lease_left_s"])
    return f"{left_s:.0f} of {node['lease_s']:g} s" if left_s > 0 else f"over for {-left_s:.0f} s"


@app.command(epilog=examples_of("ebb nodes token", "ebb nodes token --ttl 10m -o json"))
def token(
    ttl: Annotated[str, typer.Option("--ttl", help="How long it works, such as 15m or 2h.")] = "1h",
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Make a token with which one machine may join, once. It is printed this once, in the command that uses it."""
    with Api.open(home) as api:
        made = api.post("/nodes/tokens", {"ttl_s": seconds_of(ttl)})
        command = f"ebb node join {api.control} --token {made['token']}"
        control = api.control
    if output is Output.json:
        return print_json({**made, "control": control, "command": command})
    console = stderr()
    if urlsplit(control).hostname in ("127.0.0.1", "localhost", "::1"):
        console.print(
            f"This platform listens on {urlsplit(control).hostname} alone: other machines cannot reach it. Start it "
            "with 'ebb up --host ADDRESS' first.",
            style="yellow",
        )
    console.print(f"On the other machine, within {ttl} (the token works once and is not shown again):")
    typer.echo(command)


@app.command(epilog=examples_of("ebb nodes cordon gpu-2"))
def cordon(node: NodeArgument, home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """Place nothing new on a node. What runs there goes on."""
    _tell(_act(home, node, "cordon"), output, "takes nothing new; 'ebb nodes uncordon' ends that")


@app.command(epilog=examples_of("ebb nodes uncordon gpu-2"))
def uncordon(node: NodeArgument, home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """Let a node take replicas again, after cordon or drain."""
    _tell(_act(home, node, "uncordon"), output, "takes replicas again")


def _act(home: HomeOption, node: str, verb: str) -> Json:
    with Api.open(home) as api:
        return api.post(f"/nodes/{segment(node)}/{verb}")


def _tell(node: Json, output: Output, what: str) -> None:
    if output is Output.json:
        print_json(node)
    else:
        stderr().print(f"Node {node['name']} {what}.", markup=False)


@app.command(epilog=examples_of("ebb nodes drain gpu-2", "ebb nodes drain gpu-2 --timeout 10m --no-wait"))
def drain(
    node: NodeArgument,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until its last replica has gone.")] = True,
    timeout: Annotated[str, typer.Option("--timeout", help="How long to stay.")] = "15m",
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Move a node's replicas elsewhere: each is let go when its successor serves, and nothing new comes."""
    limit_s = seconds_of(timeout)
    with Api.open(home) as api:
        now = api.post(f"/nodes/{segment(node)}/drain")
        if wait:
            now = _follow_drain(api, now, limit_s)
    if output is Output.json:
        return print_json(now)
    done = "has no replicas left" if not now["replicas"] else f"has {now['replicas']} replicas left"
    console = stderr()
    console.print(f"Node {node} {done}. Remove it with 'ebb nodes rm {node}', or keep it: 'ebb nodes uncordon {node}'.")


def _follow_drain(api: Api, node: Json, limit_s: float) -> Json:
    """Shows what is left until nothing is. Raises CliError after `limit_s`, with what holds it up."""
    deadline, shown = time.monotonic() + limit_s, ""
    with Status("draining…", console=stderr()) as status:
        while node["replicas"]:
            left = _left(api, node["name"])
            if left != shown:
                shown = left
                status.update(f"draining {node['name']}: {left}")
                if not stderr().is_terminal:
                    stderr().print(f"draining {node['name']}: {left}", markup=False)
            if time.monotonic() > deadline:
                raise CliError(
                    f"Node {node['name']} still has {node['replicas']} replicas after {limit_s:.0f} s: {left}. It goes "
                    "on being drained; 'ebb ps' says what its endpoints wait for, and 'ebb nodes uncordon "
                    f"{node['name']}' ends it."
                )
            time.sleep(_POLL_S)
            node = api.get(f"/nodes/{segment(node['name'])}")
    return node


def _left(api: Api, name: str) -> str:
    here = [each for each in api.items("/replicas") if each["node"] == name and each["ended_at"] is None]
    told = ", ".join(f"{each['endpoint']} ({each['status']})" for each in here[:6])
    return f"{len(here)} left: {told}" + ("…" if len(here) > 6 else "")


@app.command(epilog=examples_of("ebb nodes rm gpu-2", "ebb nodes rm gpu-2 --force"))
def rm(
    node: NodeArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Also while it has replicas: their requests are cut off.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Remove a node. Its credential is refused from then on, and its agent ends."""
    with Api.open(home) as api:
        api.delete(f"/nodes/{segment(node)}" + ("?force=true" if force else ""))
    if output is Output.json:
        return print_json({"name": node, "removed": True})
    stderr().print(f"Node {node} is removed.", markup=False)
