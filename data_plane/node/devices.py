"""What this machine has to run models on: cores, memory, CUDA devices. Asks the driver, never torch."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml
import structlog

from data_plane.wire.fleet import Device

log = structlog.get_logger()
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """The machine's memory, or the control group's where that is less."""

    total_bytes: int
    free_bytes: int


def memory(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> Memory:
    """Memory as this process may use it. File cache that could be dropped counts as free."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for folder in _groups(cgroups, membership, "memory"):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= machine.total:
            continue
        total = min(total, limit)
        free = min(free, max(0, limit - used + _droppable(folder / "memory.stat")))
    return Memory(total, free)


def cpus(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores this process may use: its affinity, cut to the control group's quota; at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1  # not Linux
    for folder in _groups(cgroups, membership, "cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0:
            count = min(count, max(1, quota // period))
    return max(1, count)


def find(memory_bytes: int = 0) -> tuple[Device, ...]:
    """CUDA devices first, in the order in which a runner will number them, then the processor. `memory_bytes`: the most
    of the machine's memory that may count; 0: all."""
    now = memory()
    total = min(memory_bytes or now.total_bytes, now.total_bytes)
    return (*_cuda(), Device("cpu", 0, _processor_name(), total, min(total, now.free_bytes)))


def parse_size(text: str) -> int:
    """Bytes of `1.5GiB`, `800MiB` or a plain number. ValueError, with a sentence, for anything else."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(KiB|MiB|GiB|TiB)?", text.strip())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise ValueError(f"'{text[:40]}' is no amount of memory: write 1.5GiB, 800MiB or a number of bytes.")
    return size


_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _groups(cgroups: Path, membership: Path, controller: str) -> list[Path]:
    """The process's control group and all above it, for version 2 and for version 1 of `controller`."""
    folders: list[Path] = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return folders  # no control groups here
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        root = cgroups if number == "0" else cgroups / controller
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return folders


def _number(*candidates: Path) -> int | None:
    for path in candidates:
        with contextlib.suppress(OSError, ValueError):  # not there, or `max`: no limit
            return int(path.read_text())
    return None


def _droppable(stat: Path) -> int:
    with contextlib.suppress(OSError, ValueError):  # no such file: nothing is known to be droppable
        for line in stat.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _quota(folder: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError, ValueError):  # not there, or `max`: no quota
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota), int(period)
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return (quota_us or 0, period_us or 0)


def _processor_name() -> str:
    with contextlib.suppress(OSError):  # not Linux: the name is only for people
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "cpu"


def _cuda() -> list[Device]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # no driver: a machine without NVIDIA devices
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        named = [(str(index), str(pynvml.nvmlDeviceGetUUID(handle)), handle) for index, handle in enumerate(handles)]
        chosen = visible(os.environ.get("CUDA_VISIBLE_DEVICES"), [(number, uuid) for number, uuid, _ in named])
        found: list[Device] = []
        for position, index in enumerate(chosen):
            info = pynvml.nvmlDeviceGetMemoryInfo(handles[index])
            name = str(pynvml.nvmlDeviceGetName(handles[index]))
            found.append(Device("cuda", position, name, int(info.total), int(info.free)))
        return found
    except pynvml.NVMLError as error:
        log.error("devices.unreadable", error=str(error))  # a broken driver: the processor still serves
        return []
    finally:
        pynvml.nvmlShutdown()


def visible(setting: str | None, devices: list[tuple[str, str]]) -> list[int]:
    """Which of `devices` (index, UUID) a CUDA program sees under CUDA_VISIBLE_DEVICES, in its order.

    As CUDA does, the list ends at the first entry that names no device.
    """
    if setting is None:
        return list(range(len(devices)))
    chosen: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        match = [
            index
            for index, (number, uuid) in enumerate(devices)
            if entry == number or (entry.startswith("GPU-") and uuid.startswith(entry))
        ]
        if len(match) != 1 or match[0] in chosen:
            break
        chosen += match
    return chosen
