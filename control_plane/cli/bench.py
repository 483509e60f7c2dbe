"""`ebb bench`: measures an endpoint, ours or any other that speaks OpenAI's API."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, examples_of, open_home
from control_plane.cli.output import print_json, print_table, stderr

if TYPE_CHECKING:
    from control_plane.cli.load import Case

app = typer.Typer(help="Measure endpoints.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure endpoints."""


@app.command(epilog=examples_of("ebb bench load --url http://127.0.0.1:7071/e/chat/v1 --key KEY --concurrency 1,8,32"))
def load(
    url: Annotated[str, typer.Option("--url", help="The API's base, such as an endpoint's URL; …/v1.")],
    key: Annotated[
        str, typer.Option("--key", envvar="EBB_API_KEY", help="The API key; by default this home's, for its own URLs.")
    ] = "",
    model: Annotated[str | None, typer.Option("--model", help="The model's name; by default the first listed.")] = None,
    concurrency: Annotated[str, typer.Option("--concurrency", help="Requests at once, one case each.")] = "1,8,32",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of each prompt, about.")] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens of each answer.")] = 128,
    requests: Annotated[
        int | None, typer.Option("--requests-per-case", min=1, help="By default 10, and at least two per stream.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Send streamed completions with distinct prompts and tell their times and rates.

    TTFT and ITL are what this client sees, from one monotonic clock. decode_tps counts all tokens of a case over the
    time from its first request to its last token.
    """
    from control_plane.cli.load import LoadPlan, run_plan  # aiohttp: only who measures pays for it

    plan = LoadPlan(url, key or _own_key(home, url), model, _numbers(concurrency), prompt_tokens, new_tokens, requests)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as bars:
        task = bars.add_task("calibrating the prompt", total=None)

        def on_progress(text: str, done: int, total: int) -> None:
            bars.update(task, description=text, completed=done, total=total or None)

        cases = asyncio.run(run_plan(plan, on_progress))
    if output is Output.json:
        return print_json({"cases": [case.as_json() for case in cases]})
    _print(cases)


def _own_key(home: Path, url: str) -> str:
    """The home's key where `url` is its gateway's; nobody else is sent it."""
    known = open_home(home).read_credentials()
    return known["key"] if known and url.startswith(known["gateway"] + "/") else ""


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= 4096 for number in numbers):
        raise typer.BadParameter(f"'{text}' is no list of concurrencies. Write numbers from 1 to 4096, such as 1,8,32.")
    return numbers


def _print(cases: "list[Case]") -> None:
    rows = [
        (
            *(case.concurrency, f"{case.decode_tps:.1f}", f"{case.ttft_p50_ms:.0f}/{case.ttft_p99_ms:.0f}"),
            *(f"{case.itl_p50_ms:.1f}/{case.itl_p99_ms:.1f}", f"{case.prompt_tokens:.0f}", case.requests, case.errors),
        )
        for case in cases
    ]
    columns = ("concurrency", "tokens/s", "ttft p50/p99 ms", "itl p50/p99 ms", "prompt", "requests", "errors")
    print_table(columns, rows, "")
    for case in cases:
        if case.first_error:
            stderr().print(f"concurrency {case.concurrency}: {case.first_error}", markup=False)
