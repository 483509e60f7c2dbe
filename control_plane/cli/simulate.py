"""`ebb simulate`: what a decision would have done for a trace, without a machine to try it on."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from control_plane.cli.client import Api
from control_plane.cli.errors import CliError
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption, examples_of
from control_plane.cli.output import print_json, print_table, stderr
from control_plane.cli.simulate_usage import fetch

if TYPE_CHECKING:
    from control_plane.simulator.figures import Figures
    from control_plane.simulator.report import Compared, OnProgress, PolicyFigures
    from control_plane.simulator.scale.compare import Figures as ScaleFigures

F = TypeVar("F", bound="PolicyFigures")
SCALE_POLICIES = "ebb,constant:60,constant:300,constant:900,knative"
NODES = 4
POLICIES = ("ebb", "chwbl", "tree", "round-robin", "least-load", "session")


class Format(StrEnum):
    """How a trace is written."""

    mooncake = "mooncake"
    agentic = "agentic"
    synthetic = "synthetic"


class ScaleFormat(StrEnum):
    """How a trace of requests to many endpoints is written."""

    gentd26 = "gentd26"
    servegen = "servegen"
    azure_functions = "azure-functions"
    arena = "arena"
    azure_conversation = "azure-conversation"
    azure_code = "azure-code"


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
    decoded, take every replica's whole step budget. Arrivals come at --load of that rate; an agentic trace is a closed
    loop (the next request comes after the answer and the trace's think time), so there it is the starts of sessions
    that are spread, evenly at random, and the rate is sought by replaying the ideal router at several.
    """
    _check_plot(plot)
    from control_plane.simulator.compare import Comparison, compare  # only who simulates pays for it
    from control_plane.simulator.plot import draw

    names = _policies(policies, _check_route)
    asked = Comparison(
        trace, str(format), replicas, cache_blocks, names, load, gateways, report_delay, unique, seed, settings
    )
    columns = ("policy", "hits", "of ideal", "ideal", "infinite", "max/mean load", "TTFT mean", "p50", "p99")
    _tell(_compared(lambda progress: compare(asked, progress), draw, plot), output, columns, _route_row)


def _check_plot(plot: Path | None) -> None:
    if plot is not None and find_spec("matplotlib") is None:
        raise CliError("--plot needs matplotlib, which Ebb does without otherwise: pip install matplotlib.")


def _compared(
    compare: "Callable[[OnProgress], Compared[F]]", draw: "Callable[[Sequence[F], str, Path], None]", plot: Path | None
) -> "Compared[F]":
    """The comparison, with its progress shown, and its picture at `plot`."""
    from control_plane.simulator.errors import SimulationError

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=stderr(), transient=True) as bars:
            task = bars.add_task("reading the trace", total=None)

            def on_progress(text: str, done: int, total: int | None) -> None:
                bars.update(task, description=text, completed=done, total=total)

            result = compare(on_progress)
        if plot is not None:
            draw(result.figures, result.title, plot)
    except SimulationError as error:
        raise CliError(str(error)) from error
    return result


def _tell(
    result: "Compared[F]", output: Output, columns: Sequence[str], row: "Callable[[F], Sequence[object]]"
) -> None:
    if output is Output.json:
        return print_json({"policies": [one.as_json() for one in result.figures]})
    stderr().print(result.title)
    print_table(columns, [row(one) for one in result.figures], "No policy was replayed.")


def _policies(text: str, check: Callable[[str], object]) -> tuple[str, ...]:
    """The names in `text`; `check` raises ValueError for one that is none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    try:
        for name in names or ("",):
            check(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--policies") from error
    return names


def _check_route(name: str) -> None:
    if name not in POLICIES:
        raise ValueError(f"'{name}' is no policy; there are {', '.join(POLICIES)}.")


def _route_row(one: "Figures") -> Sequence[object]:
    return (
        one.policy,
        f"{one.hit_share:.1%}",
        f"{one.hit_share / one.ideal_same_caches:.1%}" if one.ideal_same_caches else "-",
        f"{one.ideal_same_caches:.1%}",
        f"{one.ideal_infinite:.1%}",
        f"{one.max_over_mean_load:.2f}",
        *(f"{seconds:.3f} s" for seconds in (one.ttft_mean_s, one.ttft_p50_s, one.ttft_p99_s)),
    )


@app.command(
    epilog=examples_of(
        "ebb simulate scale --trace requests.csv.gz --format gentd26 --nodes 8",
        "ebb simulate scale --trace rates.csv.gz --format servegen --policies ebb,constant:300 -o json",
        "ebb simulate scale --trace calls.csv --format azure-functions --settings fleet.toml --plot scale.png",
        "ebb simulate scale --trace chat.csv.gz --format azure-conversation --policies ebb,knative",
        "ebb simulate scale --from-usage --days 3",
        "ebb simulate scale --from-usage --nodes 2 --settings fleet.toml --policies as-deployed,constant:600 -o json",
    )
)
def scale(
    trace: Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="The trace; may end in .gz.")] = None,
    format: Annotated[ScaleFormat | None, typer.Option("--format", help="How it is written.")] = None,
    from_usage: Annotated[
        bool, typer.Option("--from-usage", help="Instead of a trace: this platform's own requests, endpoints, starts.")
    ] = False,
    days: Annotated[
        float, typer.Option("--days", min=0.01, max=3660, help="With --from-usage: how far back to look.")
    ] = 7.0,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", min=1, max=1000, help="Nodes of the fleet: 4, or with --from-usage its own."),
    ] = None,
    policies: Annotated[
        str, typer.Option("--policies", help="Which to compare; with --from-usage also as-deployed.")
    ] = SCALE_POLICIES,
    seed: Annotated[int, typer.Option("--seed", help="Of all that the trace leaves to chance.")] = 0,
    settings: Annotated[
        Path | None, typer.Option("--settings", metavar="FILE", help="TOML with the fleet's times; else Ebb's own.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the figures there.")] = None,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Replay a trace through the very files that say how many replicas there are and how long idle ones are kept.

    cold_share is the share of requests that find no replica ready; wait the time from a request's arrival to its turn;
    memory_hours are GB-hours, held from a replica's start to its end; slo_attainment is the share of requests that
    wait no longer than the settings' slo_wait_s. The azure traces give tokens: there a replica reads and writes in
    steps, and slo_attainment is the share of requests within slo_ttft_s and slo_itl_s. An idle replica is evicted when
    an endpoint has none and no room.

    Policies are ebb (keep-alive and waking ahead by each endpoint's own history), ebb:WORTH (the same, with WORTH
    GB-seconds of memory for a second of waiting saved), constant:SECONDS, and knative (its autoscaler's defaults).

    With --from-usage each endpoint has the limits, the memory and the measured speed that it has now, and starts as
    fast as its last starts did; its own latency objective counts, where it has one. as-deployed is the policy that
    each has now. The fleet is the platform's, or with --nodes another, as the settings say.
    """
    _check_plot(plot)
    from control_plane.simulator.scale.compare import Comparison, UsageComparison, compare, compare_usage
    from control_plane.simulator.scale.plot import draw
    from control_plane.simulator.scale.policies import AS_DEPLOYED, check_name

    columns = ("policy", "cold", "wait p50", "p95", "p99", "GB-hours", "replica-hours", "in SLO", "evictions")
    if from_usage:
        if trace is not None or format is not None:
            raise typer.BadParameter("Say --trace and --format, or --from-usage: not both.")
        if policies == SCALE_POLICIES:
            policies = f"{AS_DEPLOYED},{policies}"
        names = _policies(policies, check_name)
        with Api.open(home) as api:
            own = UsageComparison(fetch(api, days), nodes, names, settings)
        compared = _compared(lambda progress: compare_usage(own, progress), draw, plot)
    else:
        if trace is None or format is None:
            raise typer.BadParameter("Say which --trace and its --format, or --from-usage for this platform's own.")
        asked = Comparison(trace, str(format), nodes or NODES, _policies(policies, check_name), seed, settings)
        compared = _compared(lambda progress: compare(asked, progress), draw, plot)
    _tell(compared, output, columns, _scale_row)


def _scale_row(one: "ScaleFigures") -> Sequence[object]:
    return (
        one.policy,
        f"{one.cold_share:.2%}",
        *(f"{s:.1f} s" if s >= 10 else f"{s:.2f} s" for s in (one.wait_p50_s, one.wait_p95_s, one.wait_p99_s)),
        *(f"{hours:,.1f}" if hours >= 10 else f"{hours:.3f}" for hours in (one.memory_hours, one.replica_hours)),
        f"{one.slo_attainment:.2%}",
        str(one.evictions),
    )
