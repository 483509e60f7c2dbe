"""`ebb bench`: measures an endpoint, ours or any other that speaks OpenAI's API, or the engine alone without HTTP."""

import asyncio
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from control_plane.catalog.quantization import AUTO, Candidate, choose, stored_name
from control_plane.cli.client import Api, Json, segment
from control_plane.cli.errors import CliError
from control_plane.cli.options import (
    DEFAULT_HOME,
    HomeOption,
    Output,
    OutputOption,
    QuantOption,
    examples_of,
    open_home,
)
from control_plane.cli.output import print_json, print_table, stderr

if TYPE_CHECKING:
    from control_plane.cli.load_figures import Case

MEASURE = (sys.executable, "-m", "data_plane.bench", "engine")
"""The program that measures the engine: it loads torch, and this one does not."""


class Mode(StrEnum):
    """What `ebb bench engine` measures."""

    cases = "cases"
    prefix = "prefix"
    mixed = "mixed"


app = typer.Typer(help="Measure endpoints, and the engine without them.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure endpoints, and the engine without them."""


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

    TTFT and ITL are what this client sees, from one monotonic clock. decode_tps is the rate while every stream is
    between its first and last token, total_tps that of all tokens from the first request to the last token. A runner
    of ours also tells which share of its steps speaking HTTP and the engine's own Python took.
    """
    from control_plane.cli.load import LoadPlan, run_plan  # aiohttp: only who measures pays for it

    streams = _numbers(concurrency, 4096, "concurrencies")
    plan = LoadPlan(url, key or _own_key(home, url), model, streams, prompt_tokens, new_tokens, requests)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as bars:
        task = bars.add_task("calibrating the prompt", total=None)

        def on_progress(text: str, done: int, total: int) -> None:
            bars.update(task, description=text, completed=done, total=total or None)

        cases = asyncio.run(run_plan(plan, on_progress))
    if output is Output.json:
        return print_json({"cases": [case.as_json() for case in cases]})
    _print(cases)


@app.command(
    epilog=examples_of("ebb bench route --url http://127.0.0.1:7071/e/chat/v1 --conversations turns.jsonl --at-once 8")
)
def route(
    url: Annotated[str, typer.Option("--url", help="The API's base, such as an endpoint's URL; …/v1.")],
    conversations: Annotated[
        Path, typer.Option("--conversations", help="JSON lines with `messages`, perhaps gzipped.", exists=True)
    ],
    tools: Annotated[
        Path | None, typer.Option("--tools", help="JSON whose `tools` go behind each system message.", exists=True)
    ] = None,
    key: Annotated[
        str, typer.Option("--key", envvar="EBB_API_KEY", help="The API key; by default this home's, for its own URLs.")
    ] = "",
    model: Annotated[str, typer.Option("--model", help="The model's name, where the URL does not say it.")] = "",
    most: Annotated[int | None, typer.Option("--most", min=1, help="Only the first so many conversations.")] = None,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Conversations in progress.")] = 8,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens of each answer, at most.")] = 16,
    think: Annotated[float, typer.Option("--think", min=0, help="Seconds before each turn, on average.")] = 0.0,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Replay conversations turn by turn, and tell the time to first token and what of the prompts was cached.

    Every run begins cold: it has a cache salt of its own.
    """
    from control_plane.cli.turns import TurnPlan, read_conversations, replay  # aiohttp: only who measures pays for it

    turns = read_conversations(conversations, tools, most)
    named = model or url.rstrip("/").removesuffix("/v1").rsplit("/", 1)[-1]
    plan = TurnPlan(url, key or _own_key(home, url), named, at_once, new_tokens, think)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as bars:
        task = bars.add_task("turns", total=None)
        result = asyncio.run(replay(plan, turns, lambda done, of: bars.update(task, completed=done, total=of)))
    figures = result.as_json()
    if output is Output.json:
        return print_json(figures)
    print_table(("figure", "value"), [(name, str(value)) for name, value in figures.items()], "")


@app.command(
    epilog=examples_of(
        "ebb bench engine --model smollm2 --quant int8 --concurrency 1,8,32 --prompt-tokens 128,512,2048 -o json",
        "ebb bench engine --artifact ./artifacts/sha256-… --threads 2 --repeats 5",
    )
)
def engine(
    model: Annotated[str | None, typer.Option("--model", "-m", help="A model of the catalog.")] = None,
    quant: QuantOption = AUTO,
    artifact: Annotated[
        Path | None, typer.Option("--artifact", metavar="DIR", help="An artifact's folder; no platform needs to run.")
    ] = None,
    concurrency: Annotated[str, typer.Option("--concurrency", help="Streams at once, one case each.")] = "1,8,32",
    prompt_tokens: Annotated[str, typer.Option("--prompt-tokens", help="Tokens of each prompt.")] = "128,512,2048",
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens of each answer.")] = 128,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="By default as many as there are cores.")] = (
        None
    ),
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, help="How often each case is measured.")] = None,
    mode: Annotated[
        Mode,
        typer.Option("--mode", help="cases; prefix: a shared beginning again; mixed: a long prompt among streams."),
    ] = Mode.cases,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Measure the engine in a process of its own, without HTTP, beside this machine's bounds.

    What the measuring process prints is printed, and its exit code is this command's.
    """
    if (model is None) == (artifact is None):
        raise typer.BadParameter("Say what to measure: either --model NAME or --artifact DIR.")
    arguments = ["--concurrency", _joined(concurrency, 4096, "concurrencies")]
    arguments += ["--prompt-tokens", _joined(prompt_tokens, 16_777_216, "prompt lengths")]
    arguments += ["--new-tokens", str(new_tokens)]
    arguments += [] if threads is None else ["--threads", str(threads)]
    arguments += [] if repeats is None else ["--repeats", str(repeats)]
    arguments += [] if mode is Mode.cases else ["--mode", mode.value]
    arguments += ["-o", "json"] if output is Output.json else []
    folder = artifact.expanduser().absolute() if artifact is not None else _artifact_of(home, str(model), quant)
    if not folder.is_dir():
        raise CliError(f"There is no artifact at {folder} on this machine. 'ebb models show NAME' tells the digests.")
    code = subprocess.run([*MEASURE, "--artifact", str(folder), *arguments], check=False).returncode
    raise typer.Exit(code if code >= 0 else 128 - code)


def _artifact_of(home: Path, name: str, quant: str) -> Path:
    """The folder of a model's artifact: the one that is named, or the one that a CPU would be given."""
    with Api.open(home) as api:
        model = api.get(f"/models/{segment(name)}")
    found: list[Json] = model["artifacts"]
    if quant == AUTO:
        candidates = [
            Candidate(stored_name(each["quant"]), each["digest"], each["quality"] or {}, each["speed"] or {})
            for each in found
        ]
        chosen = choose(candidates, ("cpu", "cuda"))
        digest = None if chosen is None else chosen.digest
    else:
        digest = next((str(each["digest"]) for each in found if each["quant"] == quant), None)
    if digest is None:
        has = ", ".join(str(each["quant"]) for each in found) or "none"
        step = f"Make it with 'ebb models quantize {name} --quant {quant} --wait'." if quant != AUTO else ""
        raise CliError(f"Model '{name}' ({model['status']}) has no {quant} artifact (it has: {has}). {step}".strip())
    return open_home(home).root / "artifacts" / digest.replace(":", "-")


def _own_key(home: Path, url: str) -> str:
    """The home's key where `url` is its gateway's; nobody else is sent it."""
    known = open_home(home).read_credentials()
    return known["key"] if known and url.startswith(known["gateway"] + "/") else ""


def _numbers(text: str, most: int, what: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= most for number in numbers):
        raise typer.BadParameter(f"'{text}' is no list of {what}. Write numbers from 1 to {most}, such as 1,8,32.")
    return numbers


def _joined(text: str, most: int, what: str) -> str:
    return ",".join(str(number) for number in _numbers(text, most, what))


def _print(cases: "list[Case]") -> None:
    rows = [
        (
            *(case.concurrency, f"{case.decode_tps:.1f}", f"{case.total_tps:.1f}"),
            *(
                f"{case.ttft_p50_ms:.0f}/{case.ttft_p99_ms:.0f}",
                f"{case.itl_p50_ms:.1f}/{case.itl_p99_ms:.1f}",
                f"{case.prompt_tokens:.0f}",
            ),
            *(case.requests, case.errors),
        )
        for case in cases
    ]
    columns = (
        "concurrency",
        "decode/s",
        "total/s",
        "ttft p50/p99 ms",
        "itl p50/p99 ms",
        "prompt",
        "requests",
        "errors",
    )
    print_table(columns, rows, "")
    for case in cases:
        if case.http_share is not None and case.host_share is not None:
            shares = f"HTTP took {case.http_share:.1%} of the steps' time, the engine's Python {case.host_share:.1%}"
            stderr().print(f"concurrency {case.concurrency}: {shares}", markup=False)
        if case.first_error:
            stderr().print(f"concurrency {case.concurrency}: {case.first_error}", markup=False)
