"""`ebb node`: this machine as a node of a platform that runs on another."""

import os
import socket
import sys
import time
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.status import Status

from control_plane.cli.client import KEY_HINT, Json, fault
from control_plane.cli.errors import CliError, NotRunningError
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, examples_of, open_home
from control_plane.cli.output import print_json, stderr
from control_plane.cli.up import node_name, own_address, start_detached
from control_plane.embedded.home import Home
from control_plane.embedded.membership import JoinedNode, read_membership, write_membership
from data_plane.wire.names import NAME_RULE, is_name

app = typer.Typer(help="Make this machine a node of a platform that runs on another.", no_args_is_help=True)
_TIMEOUT_S = 15.0
TOKEN_VARIABLE = "EBB_JOIN_TOKEN"  # noqa: S105 - the variable's name


@app.command(
    epilog=examples_of(
        "ebb node join http://10.0.0.5:7070 --token ebbj_4f2a….…",
        "ebb node join http://10.0.0.5:7070 --token - --name gpu-2 --detach < token",
        "ebb node join http://10.0.0.5:7070        (again, after a restart: it has joined already)",
    )
)
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="The control plane, as 'ebb nodes token' prints it.")],
    token: Annotated[
        str | None,
        typer.Option("--token", envvar=TOKEN_VARIABLE, help="The token; '-' reads it from standard input."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The node's name.", show_default="this machine's name")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="HOST", help="This machine's address for the others.", show_default="found out"
        ),
    ] = None,
    standby: Annotated[
        int | None, typer.Option("--standby", min=0, metavar="N", help="Runners that wait, with everything imported.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it is ready; it runs on.")] = False,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Join a platform with a token from 'ebb nodes token', and run this machine's replicas until Ctrl-C or 'ebb down'.

    The token works once; from then on the home has a credential that is renewed while the node runs. Started again on
    the same home it needs no token.
    """
    os.environ.pop(TOKEN_VARIABLE, None)  # nothing that is started from here has any use for it
    found, control = open_home(home), url.rstrip("/")
    if not control.startswith(("http://", "https://")) or urlsplit(control).hostname is None:
        raise typer.BadParameter(f"'{url}' is no URL of a control plane, such as http://10.0.0.5:7070.")
    where = own_address(address or _address_towards(control), "--address")
    member = _member(found, control, _given(token), name)
    node = JoinedNode(found, control, member["name"], where, standby)
    if detach:
        ready = start_detached(found, _command(node))
        return _say(ready, output, f"It runs until 'ebb down --home {found.root}'.")
    _run(node, output)


def _given(token: str | None) -> str | None:
    return sys.stdin.readline().strip() if token == "-" else token  # noqa: S105


def _member(home: Home, control: str, token: str | None, name: str | None) -> Json:
    """Which node this home is: what a token makes of it, or what it has been. Raises CliError, AlreadyRunningError."""
    from control_plane.embedded.supervisor import take_home  # only who supervises pays for asyncio

    take_home(home).release()
    known = read_membership(home)
    if token:
        wanted = name or node_name()
        if not is_name(wanted):
            raise typer.BadParameter(f"--name '{wanted[:80]}': a node's name has {NAME_RULE}.")
        joined = _call(control, token, wanted)
        member = {"control": control, "node_id": joined["node_id"], "name": joined["name"]}
        write_membership(home, {**member, "credential": joined["credential"]["token"]})
        return member
    if known is None:
        raise CliError(
            f"{home.root} has not joined {control}: that takes a token. 'ebb nodes token' on the platform's machine "
            "makes one; give it with --token."
        )
    if known["control"] != control or (name and name != known["name"]):
        raise CliError(
            f"{home.root} is the node '{known['name']}' of {known['control']}. To join again, or another platform, "
            "give --token; or choose another --home."
        )
    return known


def _call(control: str, token: str, name: str) -> Json:
    import httpx

    try:
        answer = httpx.post(
            f"{control}/internal/v1/nodes/join",
            json={"name": name},
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )
    except httpx.TransportError as error:
        raise NotRunningError(
            f"The control plane at {control} does not answer ({error or type(error).__name__}). Is that the address it "
            "listens on ('ebb up --host ADDRESS'), and does a firewall let this machine through?"
        ) from error
    if answer.is_error:
        error = fault(answer)
        if error.code == "invalid_api_key":
            raise CliError(f"{control} does not know this token. 'ebb nodes token' there makes one that works once.")
        # what it says of keys is meant for people with one
        raise CliError(str(error).removesuffix(KEY_HINT)) from error
    joined: dict[str, Any] = answer.json()
    return joined


def _address_towards(control: str) -> str:
    """The address of this machine from which the control plane is reached."""
    where = urlsplit(control)
    host, port = where.hostname or "", where.port or (443 if where.scheme == "https" else 80)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # sends nothing: it only asks the kernel for the route
            return str(probe.getsockname()[0])
    except OSError as error:
        raise CliError(
            f"There is no way from here to {host} ({error.strerror or error}). Correct the URL, or say with --address "
            "under which address this machine is reached."
        ) from error


def _command(node: JoinedNode) -> list[str]:
    command = [sys.executable, "-m", "control_plane.embedded.node", "--home", str(node.home.root)]
    command += ["--address", node.address]
    return command if node.standby is None else [*command, "--standby", str(node.standby)]


def _run(node: JoinedNode, output: Output) -> None:
    from control_plane.embedded.node import run_here

    console, started = stderr(), time.monotonic()
    status = Status("starting…", console=console)
    ready: list[bool] = []

    def tell(text: str) -> None:
        if ready:
            console.print(text, style="dim", markup=False)
        else:
            status.update(f"{text}…")

    def on_ready() -> None:
        ready.append(True)
        status.stop()
        told = {"node": node.name, "control": node.control}
        _say(told, output, f"Ready in {time.monotonic() - started:.1f} s (Ctrl-C stops it and its replicas).")

    try:
        status.start()
        run_here(node, tell, on_ready)
    finally:
        status.stop()


def _say(ready: Json, output: Output, more: str) -> None:
    if output is Output.json:
        print_json(ready)
    else:
        stderr().print(f"This machine is the node '{ready['node']}' of {ready['control']}. {more}", markup=False)
