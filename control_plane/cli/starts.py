"""`ebb ps --starts`: what the last starts took, and where the time went. Knows nothing of how a replica starts."""

from collections.abc import Mapping

from control_plane.cli.client import Json
from control_plane.cli.output import ago, print_table

LETTERS = {
    **{"decide": "d", "place": "p", "spawn": "s", "claim": "c", "unpark": "u", "fetch": "f", "import": "i"},
    **{"tokenizer": "t", "map": "m", "load": "l", "warm_up": "w", "route": "r", "first_token": "1"},
}
"""The spans of a start in their order (the control plane's, the node's, the runner's, the first request's), and what
stands for each in a bar."""
PHASES = tuple(LETTERS)
BAR_COLUMNS = 24


def start_of(start: Json) -> Json:
    """One start as the API tells it, its spans in order. `total_s` is None while it is not ready, or never was;
    `client_s` is the whole up to its first token, where somebody waited for one."""
    spans = {name: start["spans"][name] for name in PHASES if name in start["spans"]}
    others = {name: seconds for name, seconds in start["spans"].items() if name not in LETTERS}
    total_s = start["total_s"]
    tail_s = None if "first_token" not in spans else spans.get("route", 0.0) + spans["first_token"]
    client_s = None if total_s is None or tail_s is None else round(total_s + tail_s, 4)
    return {**start, "spans": {**spans, **others}, "client_s": client_s}


def bar(spans: Mapping[str, float], columns: int = BAR_COLUMNS) -> str:
    """The spans side by side, each as its letter and as wide as it was long; empty where there are none."""
    whole = sum(spans.get(name, 0.0) for name in PHASES)
    if whole <= 0:
        return ""
    edges = [0]
    past = 0.0
    for name in PHASES:
        past += spans.get(name, 0.0)
        edges.append(round(columns * past / whole))
    letters = LETTERS.values()
    return "".join(letter * (end - begin) for letter, begin, end in zip(letters, edges, edges[1:], strict=False))


def print_starts(starts: list[Json]) -> None:
    """The newest first. Columns that no start has are left out."""
    shown = [name for name in PHASES if any(name in start["spans"] for start in starts)]
    rows = [
        (
            *(start["endpoint"], ago(start["created_at"]), start["node"], start["device"], start["tier"]),
            *(start["outcome"] if start["total_s"] is None else _seconds(start["total_s"]), _seconds(start["bound_s"])),
            *(_seconds(start["spans"].get(name)) for name in shown),
            bar(start["spans"]) if start["total_s"] is not None else start["reason"],
        )
        for start in starts
    ]
    columns = ("endpoint", "started", "node", "device", "from", "ready in", "bound", *shown, "where the time went")
    print_table(columns, rows, "Nothing was started yet. Wake an endpoint: ebb wake NAME")


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
