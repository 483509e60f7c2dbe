"""`ebb doctor`: is this machine fit for the platform, and what to do where it is not."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.status import Status
from rich.table import Table
from rich.text import Text

from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, open_home
from control_plane.cli.output import print_json, stderr, stdout

_MARKS = {"ok": Text("✓", "green"), "warning": Text("!", "yellow"), "fault": Text("✗", "red")}


def doctor(
    home: HomeOption = DEFAULT_HOME,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The control plane's port.")] = 7070,
    gateway_port: Annotated[int, typer.Option("--gateway-port", min=1, max=65535, help="The gateway's port.")] = 7071,
    output: OutputOption = Output.table,
) -> None:
    """Check this machine and say what to do about each fault. Exit code 1 where there is one."""
    from control_plane.cli.checks import run_checks

    with Status("looking…", console=stderr()):
        findings = run_checks(open_home(home), [(port, "--port"), (gateway_port, "--gateway-port")])
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
