"""`ebb jobs`: long work, such as imports, and how far it is."""

from typing import Annotated

import typer

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import ago, print_json, print_table


def jobs(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this job whole.")] = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """List the jobs, or show one."""
    with Api.open(home) as api:
        if job_id is not None:
            return _show(api.get(f"/jobs/{segment(job_id)}"), output)
        items = api.items("/jobs")
    if output is Output.json:
        return print_json(items)
    rows = [
        (
            *(job["id"], job["kind"], job["subject"], job["status"], progress_of(job), job["attempts"]),
            *(ago(job["created_at"]), job["error"]),
        )
        for job in items
    ]
    columns = ("id", "kind", "subject", "status", "progress", "attempts", "created", "error")
    print_table(columns, rows, "No jobs yet: 'ebb models add' makes one.")


def _show(job: Json, output: Output) -> None:
    if output is Output.json:
        return print_json(job)
    print_table(("field", "value"), [(key, value) for key, value in job.items()], "")


def progress_of(job: Json) -> str:
    """The stage, with a percentage where its size is known."""
    progress = job.get("progress") or {}
    stage, done, total = progress.get("stage") or job.get("stage"), progress.get("done"), progress.get("total")
    if job["status"] != "running" or not stage:
        return ""
    return f"{stage} {100 * done / total:.0f} %" if done is not None and total else str(stage)
