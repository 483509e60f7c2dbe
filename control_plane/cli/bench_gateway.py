"""`ebb bench gateway`: what a gateway adds, carries and costs. Only starts the program that measures."""

import subprocess
import sys
from typing import Annotated

import typer

from control_plane.cli.errors import CliError
from control_plane.cli.options import Output, OutputOption

MEASURE = (sys.executable, "-m", "data_plane.bench")
"""The program that measures: it is of the data plane, as what it starts and measures."""


def gateway(
    url: Annotated[
        str | None, typer.Option("--url", help="A gateway that runs already; by default one is started for this.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", metavar="NAME=URL", help="Another server, measured beside it.")
    ] = None,
    key: Annotated[str, typer.Option("--key", envvar="EBB_API_KEY", help="The API key for --url and peers.")] = "none",
    model: Annotated[str, typer.Option("--model", help="The model that requests to --url and peers name.")] = "chat",
    rate: Annotated[float, typer.Option("--rate", min=0, help="Streams a second for the latency; 0: none.")] = 200.0,
    duration: Annotated[float, typer.Option("--duration", min=0.1, help="Seconds of each load, target, round.")] = 5.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Medians of so many.")] = 3,
    connections: Annotated[int, typer.Option("--connections", min=1, help="Requests at once for throughput.")] = 16,
    soak: Annotated[int, typer.Option("--soak", min=0, help="Then so many requests, watching the memory.")] = 0,
    stub: Annotated[
        str | None, typer.Option("--stub", metavar="URL,…", help="Replicas of --stub-only that run already.")
    ] = None,
    stub_only: Annotated[
        bool, typer.Option("--stub-only", help="Only start stub replicas, for peers to be pointed at, and stay.")
    ] = False,
    stub_ports: Annotated[str, typer.Option("--stub-ports", help="Their ports; 0 picks a free one.")] = "0,0",
    output: OutputOption = Output.table,
) -> None:
    """Measure a gateway between stub replicas that answer at once and a load of our own, all on this machine.

    Added times are those to a stream's first byte, less what the stub takes itself in the same seconds. CPU and memory
    are those of whoever listens on the port, with its children. What the measuring process prints is printed, and its
    exit code is this command's.
    """
    if stub_only:
        return _run("stub", "--ports", stub_ports)
    arguments = ["--key", key, "--model", model, "--rate", str(rate), "--duration", str(duration)]
    arguments += ["--rounds", str(rounds), "--connections", str(connections), "--soak", str(soak)]
    arguments += ["--url", url] if url else []
    arguments += ["--stub", stub] if stub else []
    for each in peer or []:
        arguments += ["--peer", each]
    arguments += ["-o", "json"] if output is Output.json else []
    _run("gateway", *arguments)


def _run(*arguments: str) -> None:
    try:
        code = subprocess.run([*MEASURE, *arguments], check=False).returncode
    except OSError as error:
        raise CliError(f"The measurement could not be started: {error}.") from error
    raise typer.Exit(code if code >= 0 else 128 - code)
