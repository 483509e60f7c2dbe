"""`ebb jobs`: long work, such as imports, and how far it is."""

from typing import Annotated

import typer

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import CliError
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import ago, print_json, print_table, short

_WHOLE = 36  # characters of a UUID


def jobs(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this job whole.")] = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """List the jobs, or show one."""
    with Api.open(home) as api:
        if job_id is not None:
            return _show(api.get(f"/jobs/{segment(_whole_id(api, job_id))}"), output)
        items = api.items("/jobs")
    if output is Output.json:
        return print_json(items)
    rows = [
        (
            *(short(job["id"]), job["kind"], job["subject"], job["status"], progress_of(job), job["attempts"]),
            *(ago(job["created_at"]), job["error"]),
        )
        for job in items
    ]
    columns = ("id", "kind", "subject", "status", "progress", "attempts", "created", "error")
    print_table(columns, rows, "No jobs yet: 'ebb models add' makes one.")


def _whole_id(api: Api, start: str) -> str:
    """The id that begins so; listings show only the beginning. Raises CliError."""
    found = [str(job["id"]) for job in api.items("/jobs") if str(job["id"]).startswith(start)]
    if len(found) > 1:
        raise CliError(f"{len(found)} jobs begin with '{start}'. Write more of the id: {', '.join(found)}.")
    if found:
        return found[0]
    if len(start) == _WHOLE:
        return start  # older than the listing goes back
    raise CliError(f"There is no job '{start}'. See 'ebb jobs'.")


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
