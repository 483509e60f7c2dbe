"""One comparison, from its trace to its figures: read, calibrate, replay each policy. Knows no command line."""

from dataclasses import dataclass
from pathlib import Path

from control_plane.simulator.figures import Figures, pooled_share, summarise
from control_plane.simulator.formats import READERS
from control_plane.simulator.ideal import infinite_share
from control_plane.simulator.policies import POLICIES
from control_plane.simulator.replay import Setting, replay
from control_plane.simulator.report import Compared, OnProgress
from control_plane.simulator.saturation import at_load
from control_plane.simulator.settings import read_settings


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to compare on what; fields as the options of `ebb simulate route`."""

    trace: Path
    format: str
    replicas: int
    cache_blocks: int
    policies: tuple[str, ...]
    load: float = 0.7
    gateways: int = 1
    report_delay_s: float = 0.0
    unique: bool = False
    seed: int = 0
    settings: Path | None = None


def compare(asked: Comparison, on_progress: OnProgress) -> Compared[Figures]:
    """Replay every policy on the same workload. Raises SimulationError for files that cannot be used."""
    settings = read_settings(asked.settings)
    workload = READERS[asked.format](asked.trace, asked.seed)
    if asked.unique:
        workload = workload.unique()
    on_progress("finding saturation", 0, None)
    ready = at_load(workload, asked.load, asked.replicas, asked.cache_blocks, settings, asked.seed)
    total = sum(1 for _ in ready.workload.requests())
    setting = Setting(asked.replicas, asked.cache_blocks, settings, asked.gateways, asked.report_delay_s, asked.seed)
    infinite = infinite_share(ready.workload)
    is_open = total == len(ready.workload.sessions)
    pooled: float | None = None
    figures: list[Figures] = []
    for name in asked.policies:

        def step(done: int, label: str = name) -> None:
            if done % 64 == 0 or done == total:
                on_progress(label, done, total)

        step(0)
        outcome = replay(ready.workload, POLICIES[name], setting, step)
        if pooled is None or not is_open:  # in a closed loop each policy has its own order of requests
            pooled = pooled_share(outcome, asked.replicas * asked.cache_blocks, ready.workload.block_tokens)
        figures.append(summarise(name, outcome, pooled, infinite))
    title = (
        f"{asked.trace.name}: {total:,} requests on {asked.replicas} replicas of {asked.cache_blocks:,} blocks at "
        f"{asked.load:.0%} of saturation ({ready.saturation_per_s:.3g} requests/s)"
    )
    return Compared(figures, title)
