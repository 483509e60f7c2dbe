"""Prints values for people and for programs: results on stdout, everything else on stderr. Knows no command."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 200  # columns; a pipe has no width, and cut-off cells help nobody

_STATE_STYLES = {
    "live": "green",
    "ready": "green",
    "done": "green",
    "waking": "yellow",
    "importing": "yellow",
    "running": "yellow",
    "queued": "yellow",
    "draining": "yellow",
    "zero": "dim",
    "failed": "red",
    "lost": "red",
}


def stdout() -> Console:
    """The console of results."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, soft_wrap=False)


def stderr() -> Console:
    """The console of progress, hints and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """A plain table, or the sentence `empty` on stderr where there are no rows."""
    if not rows:
        stderr().print(empty)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.upper(), overflow="fold", no_wrap=column == "url")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    stdout().print(table)


def _cell(value: object) -> Text:
    text = "-" if value is None or value == "" else str(value)
    return Text(text, style=_STATE_STYLES.get(text, ""))


def size(count: int | None) -> str:
    """Bytes in the largest binary unit that leaves a number of at least one."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def count(number: int | None) -> str:
    """A number of parameters: 134.5 M, 7.6 B."""
    if number is None:
        return "-"
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def ago(moment: str | None, now: datetime | None = None) -> str:
    """How long ago an ISO-8601 time was."""
    if not moment:
        return "-"
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit} ago"
    return f"{max(0.0, seconds):.0f}s ago"
