"""`ebb status`: what runs on this machine, and what it serves."""

import time
from typing import Any

import psutil
import typer

from control_plane.cli.client import Api, Json
from control_plane.cli.errors import CliError, NotRunningError
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, open_home
from control_plane.cli.output import print_json, print_table, size, stderr
from control_plane.embedded.home import Home
from control_plane.embedded.records import ProcessRecord, read_record

_PARTS = {"control": "control plane", "node": "node agent, replicas"}


def status(home: HomeOption = DEFAULT_HOME, output: OutputOption = Output.table) -> None:
    """Show the platform's processes, nodes and endpoints. Exit code 1 where it does not run."""
    found = open_home(home)
    record = read_record(found.supervisor)
    processes = [row for row in map(describe, (record.supervisor, *record.children) if record else ()) if row]
    summary: Json = {"home": str(found.root), "ready": bool(record and record.ready), "processes": processes}
    summary |= _served(found)
    if output is Output.json:
        print_json(summary)
    else:
        _print(summary)
    if not processes and not summary["answers"]:
        raise NotRunningError(f"Nothing runs in {found.root}. Start it with 'ebb up'.")


def describe(record: ProcessRecord) -> Json | None:
    """A process with its memory and age; None where it is gone."""
    if not record.is_alive():
        return None
    try:
        tree = [psutil.Process(record.pid)]
        # The supervisor's children have rows of their own.
        tree += [] if record.name == "supervisor" else tree[0].children(recursive=True)
        memory = sum(process.memory_info().rss for process in tree)
    except psutil.Error:
        # Gone since, or another user's.
        return None
    age_s = time.time() - record.created_at
    return {"name": record.name, "pid": record.pid, "memory_bytes": memory, "age_s": round(age_s, 1)}


def _served(home: Home) -> Json:
    credentials = home.read_credentials()
    nothing: dict[str, Any] = {"control": None, "gateway": None, "answers": False, "nodes": [], "endpoints": []}
    if credentials is None:
        return nothing
    urls = {"control": credentials["control"], "gateway": credentials["gateway"]}
    try:
        with Api(credentials) as api:
            return {**urls, "answers": True, "nodes": api.items("/nodes"), "endpoints": api.items("/endpoints")}
    except CliError as error:
        return {**nothing, **urls, "fault": str(error)}


def _print(summary: Json) -> None:
    rows = [
        (_PARTS.get(row["name"], row["name"]), row["pid"], size(row["memory_bytes"]), f"{row['age_s']:.0f} s")
        for row in summary["processes"]
    ]
    print_table(("process", "pid", "memory", "age"), rows, "No process of the platform runs.")
    if summary["answers"]:
        ready = sum(node["status"] == "ready" for node in summary["nodes"])
        live = sum(endpoint["state"] == "live" for endpoint in summary["endpoints"])
        typer.echo(
            f"\ncontrol plane {summary['control']}, gateway {summary['gateway']}\n"
            f"{ready} of {len(summary['nodes'])} nodes ready, {live} of {len(summary['endpoints'])} endpoints live"
        )
        for endpoint in summary["endpoints"]:
            if endpoint.get("idle_plan"):
                typer.echo(f"{endpoint['name']}, idle auto: {endpoint['idle_plan']}")
    elif summary["processes"]:
        stderr().print(str(summary.get("fault", "")), markup=False)
