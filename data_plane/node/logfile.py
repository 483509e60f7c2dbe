"""Reads the ends of log files, bounded. Knows nothing of whose logs they are."""

from pathlib import Path

BLOCK_BYTES = 64 * 1024
TAIL_BYTES = 8 * 1024 * 1024
"""A tail holds at most so much, however long its lines are."""


def read_tail(path: Path, lines: int) -> tuple[bytes, int]:
    """The last `lines` lines, and the offset just behind them. A missing file reads as an empty one."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start, tail = end, b""
            while start > 0 and end - start < TAIL_BYTES and tail.count(b"\n", 0, -1) < lines:
                size = min(BLOCK_BYTES, start)
                start = file.seek(start - size)
                tail = file.read(size) + tail
    except FileNotFoundError:
        return b"", 0
    kept = tail.splitlines(keepends=True)[-lines:] if lines > 0 else []
    return b"".join(kept), end


def read_on(path: Path, offset: int) -> tuple[bytes, int]:
    """What was appended behind `offset`, at most one block, and the new offset. From 0 again where the file shrank."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start = offset if offset <= end else 0
            file.seek(start)
            content = file.read(BLOCK_BYTES)
    except FileNotFoundError:
        return b"", 0
    return content, start + len(content)


def prune(folder: Path, pattern: str, keep: int) -> None:
    """Removes all but the `keep` files written to last."""
    files = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[keep:]:
        path.unlink(missing_ok=True)
