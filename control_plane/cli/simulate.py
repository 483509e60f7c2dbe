"""`ebb simulate`: what a decision would have done for a trace, without a machine to try it on."""

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from control_plane.cli.errors import CliError
from control_plane.cli.options import Output, OutputOption, examples_of
from control_plane.cli.output import print_json, print_table, stderr

if TYPE_CHECKING:
    from control_plane.simulator.figures import Figures

POLICIES = ("ebb", "chwbl", "tree", "round-robin", "least-load", "session")


class Format(StrEnum):
    """How a trace is written."""

    mooncake = "mooncake"
    agentic = "agentic"
    synthetic = "synthetic"


app = typer.Typer(help="Replay traces through the very files that decide.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Replay traces through the very files that decide."""


@app.command(
    epilog=examples_of(
        "ebb simulate route --trace conversation.jsonl.gz --format mooncake --replicas 8 --cache-blocks 3000",
        "ebb simulate route --trace coding.jsonl --format agentic --policies ebb,round-robin -o json",
        "ebb simulate route --trace chat.toml --format synthetic --gateways 4 --report-delay 0.5 --plot routes.png",
    )
)
def route(
    trace: Annotated[Path, typer.Option("--trace", metavar="FILE", help="The trace; may end in .gz.")],
    format: Annotated[Format, typer.Option("--format", help="How it is written.")],
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=512, help="Replicas of the endpoint.")] = 4,
    cache_blocks: Annotated[
        int, typer.Option("--cache-blocks", min=1, help="Blocks of the trace's size that each replica's cache holds.")
    ] = 3000,
    policies: Annotated[str, typer.Option("--policies", help="Which to compare.")] = ",".join(POLICIES),
    load: Annotated[float, typer.Option("--load", min=0.01, max=2.0, help="Share of saturation to offer.")] = 0.7,
    gateways: Annotated[int, typer.Option("--gateways", min=1, max=64, help="Gateways that share the requests.")] = 1,
    report_delay: Annotated[
        float, typer.Option("--report-delay", min=0.0, metavar="S", help="Seconds until a report is heard.")
    ] = 0.0,
    unique: Annotated[bool, typer.Option("--unique", help="Take all reuse out: no two blocks are the same.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of all that the trace leaves to chance.")] = 0,
    settings: Annotated[
        Path | None, typer.Option("--settings", metavar="FILE", help="TOML with a replica's rates; else Ebb's own.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the figures there.")] = None,
    output: OutputOption = Output.table,
) -> None:
    """Replay a trace through the gateway's routing and through what other gateways do, on simulated replicas.

    Each request's prompt is a chain of blocks; a replica keeps those that it used last. hit_share is blocks found of
    all blocks; ideal_same_caches what one cache as large as all the replicas' together would have found for the same
    requests in the same order, ideal_infinite one without bounds. max_over_mean_load compares what the replicas
    computed, in tokens (prompt tokens not found, tokens decoded). TTFT is the time in the queue and in prefill.

    The fleet is saturated when the tokens that the ideal router with the same caches leaves to be computed, and those
    decoded, take every replica's whole step budget. Arrivals are spread so that --load of that is offered; an agentic
    trace is a closed loop (the next request comes after the answer and the trace's think time), so there it is the
    starts of sessions that are spread, evenly at random.
    """
    if plot is not None and find_spec("matplotlib") is None:
        raise CliError("--plot needs matplotlib, which Ebb does without otherwise: pip install matplotlib.")
    from control_plane.simulator.compare import Comparison, compare  # only who simulates pays for it
    from control_plane.simulator.errors import SimulationError

    names = _policies(policies)
    asked = Comparison(
        trace, str(format), replicas, cache_blocks, names, load, gateways, report_delay, unique, seed, settings
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=stderr(), transient=True) as bars:
            task = bars.add_task("reading the trace", total=None)

            def on_progress(text: str, done: int, total: int | None) -> None:
                bars.update(task, description=text, completed=done, total=total)

            result = compare(asked, on_progress)
        if plot is not None:
            from control_plane.simulator.plot import draw

            draw(result.figures, result.title, plot)
    except SimulationError as error:
        raise CliError(str(error)) from error
    if output is Output.json:
        print_json({"policies": [one.as_json() for one in result.figures]})
        return
    stderr().print(result.title)
    _print(result.figures)


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is no policy; there are {', '.join(POLICIES)}.", param_hint="--policies"
        )
    return names


def _print(figures: "list[Figures]") -> None:
    columns = ("policy", "hits", "of ideal", "ideal", "infinite", "max/mean load", "TTFT mean", "p50", "p99")
    rows = [
        (
            one.policy,
            f"{one.hit_share:.1%}",
            f"{one.hit_share / one.ideal_same_caches:.1%}" if one.ideal_same_caches else "-",
            f"{one.ideal_same_caches:.1%}",
            f"{one.ideal_infinite:.1%}",
            f"{one.max_over_mean_load:.2f}",
            *(f"{seconds:.3f} s" for seconds in (one.ttft_mean_s, one.ttft_p50_s, one.ttft_p99_s)),
        )
        for one in figures
    ]
    print_table(columns, rows, "No policy was replayed.")
