"""One comparison of scaling policies, from its trace to its figures. Knows no command line."""

from dataclasses import dataclass
from pathlib import Path

from control_plane.simulator.errors import SimulationError
from control_plane.simulator.figures import percentile
from control_plane.simulator.report import Compared, OnProgress, PolicyFigures
from control_plane.simulator.scale.formats import read_trace
from control_plane.simulator.scale.policies import scaler_of
from control_plane.simulator.scale.replay import Outcome, Replay
from control_plane.simulator.scale.settings import FleetSettings, read_settings


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


def compare(asked: Comparison, on_progress: OnProgress) -> Compared[Figures]:
    """Replay every policy on the same trace. Raises SimulationError for files that cannot be used."""
    settings = read_settings(asked.settings)
    trace = read_trace(asked.trace, asked.format, settings, asked.seed)
    total = len(trace.arrivals)
    figures: list[Figures] = []
    for name in asked.policies:

        def step(done: int, label: str = name) -> None:
            on_progress(label, done, total)

        outcome = Replay(trace, asked.nodes, settings, scaler_of(name, settings, trace)).run(step)
        figures.append(summarise(name, outcome, total, settings))
    title = (
        f"{asked.trace.name}: {total:,} requests to {len(trace.endpoints)} endpoints in {trace.span_s / 3600:.1f} h on "
        f"{asked.nodes} nodes of {settings.node_devices} devices; a start takes {settings.start_s:g} s"
    )
    return Compared(figures, title)


def summarise(policy: str, outcome: Outcome, total: int, settings: FleetSettings) -> Figures:
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
        memory_hours=outcome.replica_s * settings.memory_gb / 3600.0,
        replica_hours=outcome.replica_s / 3600.0,
        slo_attainment=outcome.met / total,
        evictions=outcome.evictions,
    )
