"""Prints values for people and for programs: results on stdout, everything else on stderr. Knows no command."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
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
    "parked": "dim",
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
    console = stdout()
    for line in lay_out([column.upper() for column in columns], rows, console.width if sys.stdout.isatty() else None):
        console.print(line, soft_wrap=True)


def lay_out(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int | None) -> list[Text]:
    """The table's lines. No cell is ever folded, so that an id or a URL can be copied from any terminal.

    The last column is the one that may be long. Where its cells do not fit into `width`, each goes below its row.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    heads = [Text(column, style="bold") for column in columns]
    widths = [max(cell.cell_len for cell in column) for column in zip(heads, *cells, strict=True)]
    below = width is not None and len(columns) > 2 and sum(widths) + 2 * (len(widths) - 1) > width
    lines: list[Text] = []
    for row in (heads, *cells):
        shown = row[:-1] if below else row
        padded = [Text.assemble(cell, " " * (room - cell.cell_len)) for cell, room in zip(shown, widths, strict=False)]
        line = Text("  ").join(padded)
        line.rstrip()
        lines.append(line)
        if below and row is not heads and row[-1].plain != "-":
            lines.append(Text.assemble("  ", row[-1]))
    return lines


def _cell(value: object) -> Text:
    text = "-" if value is None or value == "" else str(value)
    return Text(text, style=_STATE_STYLES.get(text, ""))


def short(identifier: str) -> str:
    """The beginning of an id: enough to name it again."""
    return identifier[:8]


def sentence(text: str) -> str:
    """What a part of the platform said, fit to stand before another sentence."""
    text = text.strip() or "it ended without a reason"
    return text if text[-1] in ".!?" else f"{text}."


def clock(moment: str, now: datetime | None = None) -> str:
    """An ISO-8601 time in this machine's zone; without the date where that is today's."""
    at = datetime.fromisoformat(moment).astimezone()
    today = (now or datetime.now(UTC)).astimezone().date()
    return f"{at:%H:%M:%S}" if at.date() == today else f"{at:%Y-%m-%d %H:%M:%S}"


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
