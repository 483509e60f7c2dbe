"""One comparison of scaling policies, from its trace to its figures. Knows no command line."""

from dataclasses import dataclass
from pathlib import Path

from control_plane.placement.planner import DeviceView
from control_plane.simulator.errors import SimulationError
from control_plane.simulator.figures import percentile
from control_plane.simulator.report import Compared, OnProgress, PolicyFigures
from control_plane.simulator.scale.formats import read_trace
from control_plane.simulator.scale.policies import scaler_of
from control_plane.simulator.scale.replay import Outcome, Replay
from control_plane.simulator.scale.settings import FleetSettings, read_settings
from control_plane.simulator.scale.usage import Told, own_worth, recorded
from control_plane.simulator.scale.workload import Trace


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to compare on what; fields as the options of `ebb simulate scale`."""

    trace: Path
    format: str
    nodes: int
    policies: tuple[str, ...]
    seed: int = 0
    settings: Path | None = None


@dataclass(frozen=True, slots=True)
class UsageComparison:
    """The same on a platform's own requests. `nodes`: of another fleet, alike as the settings say; None: its own."""

    told: Told
    nodes: int | None
    policies: tuple[str, ...]
    settings: Path | None = None


@dataclass(frozen=True, slots=True)
class Figures(PolicyFigures):
    """See the fields' names in `ebb simulate scale --help`."""

    cold_share: float
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    memory_hours: float
    replica_hours: float
    slo_attainment: float
    evictions: int


@dataclass(frozen=True, slots=True)
class _Setting:
    trace: Trace
    nodes: int
    settings: FleetSettings
    devices: tuple[DeviceView, ...] | None = None


def compare(asked: Comparison, on_progress: OnProgress) -> Compared[Figures]:
    """Replay every policy on the same trace. Raises SimulationError for files that cannot be used."""
    settings = read_settings(asked.settings)
    trace = read_trace(asked.trace, asked.format, settings, asked.seed)
    figures = _replay(_Setting(trace, asked.nodes, settings), asked.policies, on_progress)
    title = (
        f"{asked.trace.name}: {_extent(trace)} on {asked.nodes} nodes of {settings.node_devices} devices; a start "
        f"takes {settings.start_s:g} s"
    )
    return Compared(figures, title)


def compare_usage(asked: UsageComparison, on_progress: OnProgress) -> Compared[Figures]:
    """Replay every policy on what a platform tells of itself. Raises SimulationError where that is too little or too
    much, where it has no node and none is assumed, and where an endpoint has no room in the fleet."""
    settings = read_settings(asked.settings)
    found = recorded(asked.told, settings if asked.settings is not None else own_worth(settings))
    if asked.nodes is None and not found.devices:
        raise SimulationError("No node is ready, so there is no fleet to replay on. Assume one with --nodes.")
    devices = found.devices if asked.nodes is None else None
    figures = _replay(_Setting(found.trace, asked.nodes or 0, settings, devices), asked.policies, on_progress)
    starts = sorted(one.settings.start_s for one in found.trace.deployed)
    span = f"{starts[0]:.2f} s" if starts[0] == starts[-1] else f"{starts[0]:.2f} to {starts[-1]:.2f} s"
    fleet = (
        f"its own devices ({len(found.devices)})" if devices is not None else f"{asked.nodes} nodes as the settings say"
    )
    title = f"The platform's own usage: {_extent(found.trace)} on {fleet}; a start takes {span}"
    return Compared(figures, "\n".join((title, *found.notes)))


def _extent(trace: Trace) -> str:
    span = f"{trace.span_s / 3600:.1f} h" if trace.span_s >= 3600 else f"{trace.span_s / 60:.1f} min"
    return f"{len(trace.arrivals):,} requests to {len(trace.endpoints)} endpoints in {span}"


def _replay(on: _Setting, policies: tuple[str, ...], on_progress: OnProgress) -> list[Figures]:
    total = len(on.trace.arrivals)
    figures: list[Figures] = []
    for name in policies:

        def step(done: int, label: str = name) -> None:
            on_progress(label, done, total)

        try:
            scaler = scaler_of(name, on.settings, on.trace)
        except ValueError as error:
            raise SimulationError(str(error)) from error
        outcome = Replay(on.trace, on.nodes, on.settings, scaler, on.devices).run(step)
        figures.append(summarise(name, outcome, total))
    return figures


def summarise(policy: str, outcome: Outcome, total: int) -> Figures:
    """Shares are of all requests; memory_hours are GB-hours. A request that never had its turn missed the objective."""
    waits = sorted(outcome.waits)
    if not waits:
        raise SimulationError(f"With the policy {policy} no request had its turn.")
    return Figures(
        policy=policy,
        cold_share=outcome.cold / total,
        wait_p50_s=percentile(waits, 0.5),
        wait_p95_s=percentile(waits, 0.95),
        wait_p99_s=percentile(waits, 0.99),
        memory_hours=outcome.memory_gb_s / 3600.0,
        replica_hours=outcome.replica_s / 3600.0,
        slo_attainment=outcome.met / total,
        evictions=outcome.evictions,
    )
