"""`ebb ps --starts`: what the last cold starts took, and where the time went. Knows nothing of how a replica starts."""

from collections.abc import Mapping

from control_plane.cli.client import Json
from control_plane.cli.output import ago, print_table

PHASES = ("decide", "place", "spawn", "import", "load", "warmup")
"""The spans of a start in their order: the control plane's, then the node's, then the runner's."""
WHOLE = "ready"
BAR_COLUMNS = 24


def start_of(replica: Json) -> Json:
    """One start, from what the API tells of its replica. `total_s` is None while it is not ready, or never was."""
    spans = {name: replica["spans"][name] for name in PHASES if name in replica["spans"]}
    keys = ("endpoint", "node", "device", "generation", "status", "reason", "created_at", "ready_at")
    return {
        "replica": replica["id"],
        **{key: replica[key] for key in keys},
        "total_s": replica["spans"].get(WHOLE),
        "spans": spans,
    }


def bar(spans: Mapping[str, float], columns: int = BAR_COLUMNS) -> str:
    """The spans side by side, each in its first letter and as wide as it was long; empty where there are none."""
    whole = sum(spans.values())
    if whole <= 0:
        return ""
    edges = [0]
    past = 0.0
    for name in PHASES:
        past += spans.get(name, 0.0)
        edges.append(round(columns * past / whole))
    return "".join(name[0] * (end - begin) for name, begin, end in zip(PHASES, edges, edges[1:], strict=False))


def print_starts(starts: list[Json]) -> None:
    """The newest first. Columns that no start has are left out."""
    shown = [name for name in PHASES if any(name in start["spans"] for start in starts)]
    rows = [
        (
            *(start["endpoint"], ago(start["created_at"]), start["node"], start["device"]),
            *(start["status"] if start["total_s"] is None else _seconds(start["total_s"]),),
            *(_seconds(start["spans"].get(name)) for name in shown),
            bar(start["spans"]) if start["total_s"] is not None else start["reason"],
        )
        for start in starts
    ]
    columns = ("endpoint", "started", "node", "device", "total", *shown, "where the time went")
    print_table(columns, rows, "Nothing was started yet. Wake an endpoint: ebb wake NAME")


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
