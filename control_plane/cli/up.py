"""`ebb up` and `ebb down`: the platform on this machine. Knows how to talk to the supervisor, not what it does."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.status import Status

from control_plane.cli import demo as first_run
from control_plane.cli.client import Json
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, open_home
from control_plane.cli.output import stderr
from control_plane.embedded.errors import StartError
from control_plane.embedded.home import Credentials, Home
from control_plane.embedded.leftovers import stop_leftovers
from control_plane.embedded.lock import HomeLock
from control_plane.embedded.plan import Platform
from control_plane.embedded.records import read_record, wait_gone

_STOP_TIMEOUT_S = 90.0


def up(
    home: HomeOption = DEFAULT_HOME,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The control plane's port.")] = 7070,
    gateway_port: Annotated[int, typer.Option("--gateway-port", min=1, max=65535, help="The gateway's port.")] = 7071,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="This machine's address for others; needed where other machines join."
        ),
    ] = "127.0.0.1",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it is ready; it runs on.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="On the first run add the model smollm2 and deploy it as 'chat'.")
    ] = False,
    standby: Annotated[
        int, typer.Option("--standby", min=0, max=16, help="Runners that wait, all imported, to be claimed by a start.")
    ] = 1,
    output: OutputOption = Output.table,
) -> None:
    """Start the platform on this machine: PostgreSQL, control plane, gateway, node agent, worker.

    It stays in the foreground until Ctrl-C, or with --detach until 'ebb down'. EBB_DATABASE_URL and EBB_BROKER_URL,
    where they are set, are used instead of the embedded PostgreSQL and the broker in the home directory.

    For an endpoint to wake with its hottest prompts, up to EBB_KV_SNAPSHOT_MB (64) MiB of its KV cache stay in the
    home's folder kv, in all EBB_KV_SNAPSHOTS_MB (1024): what clients wrote, in effect. 0 keeps nothing.
    """
    if port == gateway_port:
        raise typer.BadParameter(f"Control plane and gateway cannot both have port {port}.")
    platform = Platform(
        home=open_home(home),
        host=own_address(host, "--host"),
        port=port,
        gateway_port=gateway_port,
        node_name=node_name(),
        database_url=os.environ.get("EBB_DATABASE_URL") or None,
        broker_url=os.environ.get("EBB_BROKER_URL") or None,
        standby=standby,
    )
    if detach:
        _say_ready(_start_detached(platform), platform.home, demo=demo, output=output)
        if output is Output.table:
            stderr().print(f"It runs until 'ebb down{_flag(platform.home)}'.", style="dim")
    else:
        _run_here(platform, demo=demo, output=output)


def down(home: HomeOption = DEFAULT_HOME) -> None:
    """Stop the platform of a home and everything it started, runners included."""
    found = open_home(home)
    record = read_record(found.supervisor)
    console = stderr()
    if record is not None and record.supervisor.is_alive():
        with Status("stopping…", console=console):
            os.kill(record.supervisor.pid, signal.SIGTERM)
            if wait_gone([record.supervisor], _STOP_TIMEOUT_S):
                record.supervisor.signal_group(signal.SIGKILL)
    if not found.lock.exists():
        console.print(f"Nothing runs in {found.root}.", markup=False)
        return
    lock = HomeLock(found.lock)
    if not lock.acquire():
        raise StartError(f"Ebb is being started in {found.root} just now. Try 'ebb down' again in a moment.")
    try:
        left = stop_leftovers(found, runners=True, tell=lambda text: console.print(text, style="dim"))
    finally:
        lock.release()
    console.print("Stopped." if record is not None or left else f"Nothing runs in {found.root}.", markup=False)


def own_address(address: str, flag: str) -> str:
    """`address`, once it is clear that this machine has it. Raises a usage error otherwise."""
    if address in ("0.0.0.0", "::", ""):  # noqa: S104 - refused, not bound
        raise typer.BadParameter(
            f"{flag} '{address}': give the one address under which others reach this machine, such as 10.0.0.5 "
            "('ip address' lists them)."
        )
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        raise typer.BadParameter(
            f"{flag} {address}: this machine cannot listen there ({error.strerror or error}); 'ip address' lists its "
            "addresses."
        ) from error
    return address


def node_name() -> str:
    """This machine's name in the form that names have."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower().partition(".")[0]).strip("-")
    return name[:63] or "node"


def _run_here(platform: Platform, *, demo: bool, output: Output) -> None:
    from control_plane.embedded.supervisor import Supervisor, take_home  # only who supervises pays for asyncio

    console = stderr()
    started = time.monotonic()
    lock = take_home(platform.home)
    status = Status("starting…", console=console)
    ready = threading.Event()

    def tell(text: str) -> None:
        if not ready.is_set():
            status.update(f"{text}…")
        else:
            console.print(text, style="dim", markup=False)

    async def on_ready(credentials: Credentials) -> None:
        ready.set()
        status.stop()
        if output is Output.table:
            typer.echo(f"ready in {time.monotonic() - started:.1f} s (Ctrl-C stops it)")
        await asyncio.to_thread(_say_ready, credentials, platform.home, demo=demo, output=output)

    try:
        status.start()
        asyncio.run(Supervisor(platform, tell).run(on_ready))
    finally:
        status.stop()
        lock.release()


def _start_detached(platform: Platform) -> Credentials:
    """Start a supervisor of its own session and wait until it says it is ready. Raises StartError with its reason."""
    command = [sys.executable, "-m", "control_plane.embedded", "--home", str(platform.home.root)]
    command += ["--host", platform.host, "--port", str(platform.port)]
    command += ["--gateway-port", str(platform.gateway_port), "--name", platform.node_name]
    command += ["--standby", str(platform.standby)]
    ready = start_detached(platform.home, command)
    return Credentials(control=ready["control"], gateway=ready["gateway"], key=ready["key"])


def start_detached(home: Home, command: list[str]) -> Json:
    """Start a supervisor in a session of its own and wait until it says it is ready, and with what. Raises StartError
    with its reason."""
    home.create()
    with home.log("supervisor").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=home.root,
            start_new_session=True,
            text=True,
        )
    try:
        with Status("starting…", console=stderr()) as status:
            for message in _messages(process):
                if "tell" in message:
                    status.update(f"{message['tell']}…")
                elif "failed" in message:
                    process.wait()
                    raise StartError(message["failed"])
                elif "ready" in message:
                    return message["ready"]
    except KeyboardInterrupt:
        # Whoever stops the start does not want half a platform.
        process.terminate()
        process.wait()
        raise
    code = process.wait()
    raise StartError(f"The supervisor ended with code {code} before it was ready; see {home.log('supervisor')}.")


def _messages(process: "subprocess.Popen[str]") -> Iterator[Json]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _say_ready(credentials: Credentials, home: Home, *, demo: bool, output: Output) -> None:
    if demo:
        first_run.set_up(credentials, home)
    if output is Output.json:
        sys.stdout.write(json.dumps(credentials) + "\n")
        sys.stdout.flush()
    else:
        first_run.introduce(credentials, home)


def _flag(home: Home) -> str:
    return "" if home.root == Path("~/.ebb").expanduser() else f" --home {home.root}"
