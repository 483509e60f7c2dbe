"""What a process has in memory, by what it is. Asks the kernel; knows nothing of replicas."""

from dataclasses import dataclass
from pathlib import Path

import psutil

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes. `peak_bytes` is the most there ever was; `fixed_bytes` is what is private or of files: all but memory that
    could be shared, which is what a KV cache is made of. 0: not known."""

    now_bytes: int = 0
    peak_bytes: int = 0
    fixed_bytes: int = 0


def read(pid: int, proc: Path = PROC) -> Resident:
    """Of one process. psutil.Error where it is gone."""
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
    except OSError:
        return Resident(psutil.Process(pid).memory_info().rss)
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    now, peak, private, files, shared = (_kib(fields, name) for name in _NAMES)
    # a cache that is private memory (torch's) cannot be told from the rest
    return Resident(now, peak, private + files if shared else 0)


_NAMES = ("VmRSS", "VmHWM", "RssAnon", "RssFile", "RssShmem")


def _kib(fields: dict[str, list[str]], name: str) -> int:
    words = fields.get(name, [])
    return int(words[0]) * 1024 if words and words[0].isdigit() else 0
