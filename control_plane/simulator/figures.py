"""What a replay comes to: shares, loads and times of one policy. Arithmetic only."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from control_plane.simulator.ideal import pooled
from control_plane.simulator.replay import Outcome
from control_plane.simulator.report import PolicyFigures


@dataclass(frozen=True, slots=True)
class Figures(PolicyFigures):
    """See the fields' names in `ebb simulate route --help`."""

    hit_share: float
    ideal_same_caches: float
    ideal_infinite: float
    max_over_mean_load: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float


def pooled_share(outcome: Outcome, pooled_blocks: int, block_tokens: int) -> float:
    """The ideal router's hit share with the same caches, for the requests in the order in which they came here."""
    return pooled((job.request for job in outcome.jobs), pooled_blocks, block_tokens).hit_share


def summarise(policy: str, outcome: Outcome, ideal_same_caches: float, ideal_infinite: float) -> Figures:
    """The figures of a replay beside the ideals'."""
    blocks = sum(len(job.request.chain) for job in outcome.jobs)
    times = sorted(ttfts(outcome))
    mean_load = sum(outcome.work_tokens) / len(outcome.work_tokens)
    return Figures(
        policy=policy,
        hit_share=sum(job.matched_blocks for job in outcome.jobs) / blocks if blocks else 0.0,
        ideal_same_caches=ideal_same_caches,
        ideal_infinite=ideal_infinite,
        max_over_mean_load=max(outcome.work_tokens) / mean_load,
        ttft_mean_s=sum(times) / len(times),
        ttft_p50_s=percentile(times, 0.5),
        ttft_p99_s=percentile(times, 0.99),
    )


def ttfts(outcome: Outcome) -> list[float]:
    """Seconds to the first token, by arrival."""
    return [job.first_at - job.arrived for job in outcome.jobs if job.first_at is not None]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]
