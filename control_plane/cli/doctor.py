"""`ebb doctor`: is this machine fit for the platform, and what to do where it is not."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.status import Status
from rich.table import Table
from rich.text import Text

from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, open_home
from control_plane.cli.output import print_json, stderr, stdout

_PORT_HELP = "The control plane's port; by default the one it runs on, or"
_GATEWAY_PORT_HELP = "The gateway's port; by default the one it runs on, or"
_MARKS = {"ok": Text("✓", "green"), "warning": Text("!", "yellow"), "fault": Text("✗", "red")}


def doctor(
    home: HomeOption = DEFAULT_HOME,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help=f"{_PORT_HELP}: 7070.")] = None,
    gateway_port: Annotated[
        int | None, typer.Option("--gateway-port", min=1, max=65535, help=f"{_GATEWAY_PORT_HELP}: 7071.")
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Check this machine and say what to do about each fault. Exit code 1 where there is one."""
    from control_plane.cli.checks import ports_in_use_by, run_checks

    found = open_home(home)
    used = ports_in_use_by(found)
    ports = [(port or used[0], "--port"), (gateway_port or used[1], "--gateway-port")]
    with Status("looking…", console=stderr()):
        findings = run_checks(found, ports)
    if output is Output.json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for finding in findings:
            text = Text(finding.found)
            if finding.remedy:
                text.append(f"\n→ {finding.remedy}", "yellow")
            table.add_row(_MARKS[finding.verdict], finding.check, text)
        stdout().print(table)
    if any(finding.verdict == "fault" for finding in findings):
        raise typer.Exit(1)
