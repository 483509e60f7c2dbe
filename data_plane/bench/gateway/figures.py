"""What the rounds of a measurement come to, target by target. Pure: no clock, no I/O."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

DIRECT = "direct"


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie (nearest rank). ValueError where there are none."""
    if not values:
        raise ValueError("There are no values to take a percentile of.")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


@dataclass
class Round:
    """One target's figures of one round. Added times are against the stub in the same seconds; None: not measured."""

    p50_ms: float | None = None
    p99_ms: float | None = None
    added_p50_ms: float | None = None
    added_p99_ms: float | None = None
    requests_per_s: float | None = None
    streams_per_s: float | None = None
    chunks_per_s: float | None = None
    cpu_us_per_request: float | None = None
    cpu_us_per_stream: float | None = None
    errors: int = 0


@dataclass
class Summary:
    """One target over all rounds. Resident megabytes before the first load and after the last one."""

    name: str
    rounds: list[Round] = field(default_factory=list[Round])
    rss_before_mb: float | None = None
    rss_after_mb: float | None = None
    soak: "Soak | None" = None

    def middle(self, figure: str) -> float | None:
        """The median over the rounds; None where it was never measured."""
        values = self.values(figure)
        return median(values) if values else None

    def values(self, figure: str) -> list[float]:
        """All that was measured of a figure."""
        return [value for value in (getattr(each, figure) for each in self.rounds) if value is not None]

    @property
    def errors(self) -> int:
        """Of all rounds."""
        return sum(each.errors for each in self.rounds)

    def as_json(self) -> dict[str, Any]:
        """Medians by name, with the least and the most of each under `spread`."""
        names = [name for name in Round.__dataclass_fields__ if name != "errors"]
        told: dict[str, Any] = {"name": self.name, **{name: self.middle(name) for name in names}}
        told["spread"] = {name: [min(got), max(got)] for name in names if (got := self.values(name))}
        told |= {"errors": self.errors, "rss_before_mb": self.rss_before_mb, "rss_after_mb": self.rss_after_mb}
        if self.soak is not None:
            told["soak"] = {
                "requests": self.soak.requests,
                "seconds": self.soak.seconds,
                "errors": self.soak.errors,
                "rss_mb": self.soak.rss_mb,
            }
        return told


@dataclass
class Soak:
    """Many requests in a row: `rss_mb` before them and after each tenth of them."""

    requests: int
    seconds: float
    errors: int
    rss_mb: list[float]


HEADS = (
    *("target", "first byte +p50/p99 ms", "p50/p99 ms", "requests/s", "streams/s", "chunks/s"),
    *("cpu us/request", "cpu us/stream", "MB before/after", "errors"),
)


def table(summaries: list[Summary]) -> str:
    """All targets under each other, for people."""
    rows = [HEADS, *(_row(each) for each in summaries)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for each in summaries:
        if each.soak is not None:
            steps = " ".join(f"{mb:.1f}" for mb in each.soak.rss_mb)
            lines.append(
                f"{each.name}: {each.soak.requests} requests, {each.soak.errors} errors, MB by tenths: {steps}"
            )
    return "\n".join(lines)


def _row(one: Summary) -> tuple[str, ...]:
    def show(figure: str, digits: int = 0) -> str:
        value = one.middle(figure)
        return "-" if value is None else f"{value:.{digits}f}"

    memory = "-" if one.rss_after_mb is None else f"{one.rss_before_mb:.0f}/{one.rss_after_mb:.0f}"
    return (
        one.name,
        f"{show('added_p50_ms', 2)}/{show('added_p99_ms', 2)}",
        f"{show('p50_ms', 2)}/{show('p99_ms', 2)}",
        *(show("requests_per_s"), show("streams_per_s"), show("chunks_per_s")),
        *(show("cpu_us_per_request"), show("cpu_us_per_stream"), memory, str(one.errors)),
    )
