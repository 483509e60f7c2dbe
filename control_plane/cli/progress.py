"""Shows long work while it goes on: the stages of a job, the phases of a wake. Knows which fields the REST API has."""

import sys
import time
from collections.abc import Callable

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.status import Status
from rich.text import Text

from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import CliError
from control_plane.cli.output import sentence, short, stderr

_POLL_S = 0.3

STAGES = {
    "download": "downloading",
    "verify": "checking the digest",
    "parse": "reading the file",
    "convert": "converting the weights",
    "quantize": "quantizing the weights",
    "evaluate": "measuring quality and speed",
    "write": "writing the artifact",
}


_IN_BYTES = frozenset(STAGES.values()) - {STAGES["evaluate"]}


class _Bytes(ProgressColumn):
    """`45.1/98.2 MB`, and nothing while neither is known or where it is not bytes that are counted."""

    def render(self, task: Task) -> Text:
        if task.description not in _IN_BYTES:
            return Text("")
        done = f"{task.completed / 1e6:.1f}"
        if task.total:
            return Text(f"{done}/{task.total / 1e6:.1f} MB")
        return Text(f"{done} MB" if task.completed else "")


class _Rate(ProgressColumn):
    """Bytes per second, once there is something to divide."""

    def render(self, task: Task) -> Text:
        if not task.speed or task.description not in _IN_BYTES:
            return Text("")
        return Text(f"{task.speed / 1e6:.1f} MB/s", style="dim")


def wait_for_job(api: Api, job_id: str, label: str) -> Json:
    """Show a job until it ends; the job. Raises CliError with the job's reason where it failed."""
    show = _show_bar if sys.stderr.isatty() else _show_lines
    job = show(api, job_id, label)
    if job["status"] == "failed":
        raise CliError(f"{label} failed: {sentence(job['error'] or '')} Look closer with 'ebb jobs {short(job_id)}'.")
    return job


def _stage(job: Json) -> tuple[str, int, int]:
    """(what is being done, how much of it, of how much; 0 where that is not known). All but `evaluate` count bytes."""
    if job["status"] == "queued":
        return "waiting for a worker", 0, 0
    progress = job.get("progress") or {}
    stage = str(progress.get("stage") or job.get("stage") or "starting")
    return STAGES.get(stage, stage), int(progress.get("done") or 0), int(progress.get("total") or 0)


def _show_bar(api: Api, job_id: str, label: str) -> Json:
    columns = (SpinnerColumn(), TextColumn("{task.fields[label]}: {task.description}"), BarColumn(bar_width=20))
    with Progress(*columns, _Bytes(), _Rate(), console=stderr()) as bars:
        shown = ""
        task = bars.add_task("", total=None, label=label)
        while True:
            job = api.get(f"/jobs/{segment(job_id)}")
            stage, done, total = _stage(job)
            if stage != shown:
                # Each stage counts its own bytes: a new bar, so that speeds do not mix.
                bars.remove_task(task)
                task = bars.add_task(stage, total=total or None, completed=done, label=label)
                shown = stage
            bars.update(task, total=total or None, completed=done)
            if job["status"] in ("done", "failed"):
                bars.remove_task(task)
                return job
            time.sleep(_POLL_S)


def _show_lines(api: Api, job_id: str, label: str) -> Json:
    """For logs and pipes: a line for each stage."""
    console, shown = stderr(), ""
    while True:
        job = api.get(f"/jobs/{segment(job_id)}")
        stage, _, total = _stage(job)
        line = f"{label}: {stage}" + (f" ({total / 1e6:.0f} MB)" if total and stage in _IN_BYTES else "")
        if job["status"] in ("done", "failed"):
            return job
        if stage != shown:
            console.print(line)
            shown = stage
        time.sleep(_POLL_S)


def wait_until(check: Callable[[], str | None], timeout_s: float, label: str) -> None:
    """Call `check` until it returns None; what it returns until then is shown. Raises CliError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    with Status(label, console=stderr()) as status:
        while True:
            still = check()
            if still is None:
                return
            if time.monotonic() > deadline:
                raise CliError(
                    f"{label}: not done after {timeout_s:.0f} s ({still}). 'ebb events' tells what happened."
                )
            status.update(f"{label}: {still}")
            time.sleep(_POLL_S)
