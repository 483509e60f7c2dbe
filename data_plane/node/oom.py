"""Whether the kernel has been killing processes for want of memory. Knows nothing of runners."""

from pathlib import Path

VMSTAT = Path("/proc/vmstat")
COUNTER = "oom_kill "


def kills(path: Path = VMSTAT) -> int | None:
    """How many processes the kernel has killed so since it booted, in memory groups too; None where it does not say."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(COUNTER):
                return int(line.removeprefix(COUNTER))
    except (OSError, ValueError):
        return None
    return None


def rose(before: int | None, after: int | None) -> bool:
    """Whether it did between two looks."""
    return before is not None and after is not None and after > before
