"""Processes by identity: who has a pid, waiting for its end, signalling it. Knows nothing of runners.

A pid alone is never signalled: the kernel hands it out again. An identity is the boot and the tick at which the
process started; unlike a creation time it does not move when the clock is set.
"""

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Protocol

import psutil

PROC = Path("/proc")
WAIT_POLL_S = 0.01
PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h."""
BLIND_POLL_S = 0.5
"""How often a process is looked at where the system has no pidfd."""


@functools.cache
def _boot_id() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""  # not Linux: the creation time below is unique over boots by itself


def identity(pid: int) -> str | None:
    """Who has this pid now; None where nobody has, or only a zombie."""
    if pid <= 0:
        return None
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return _identity_without_proc(pid) if not PROC.joinpath("self").exists() else None
    # the name in parentheses may hold spaces and parentheses: fields count from the last one
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return f"{_boot_id()}:{fields[19]}"


def _identity_without_proc(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return str(process.create_time())
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int, expected: str) -> bool:
    """Whether the very process of that identity still runs."""
    return bool(expected) and identity(pid) == expected


def find_by_argument(argument: str) -> list[int]:
    """Pids whose command line holds `argument` as a whole word (the path of a spec file)."""
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile, or is another user's: not ours either way
            if argument in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def terminate(pid: int, expected: str) -> bool:
    """SIGTERM to the process itself (it tells its own children). False where it is gone."""
    if not is_alive(pid, expected):
        return False
    with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal: what was wanted
        os.kill(pid, signal.SIGTERM)
    return True


def kill_group(pid: int, expected: str) -> bool:
    """SIGKILL to the process group that it leads. False where the leader is gone."""
    if not is_alive(pid, expected):
        return False
    with contextlib.suppress(ProcessLookupError):  # as above
        leads = os.getpgid(pid) == pid
        if leads:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    return True


class Child(Protocol):
    """What is used of `subprocess.Popen`."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


class Forked:
    """A child of this process that it has not started: its parent's end made it ours (`take_orphans`)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs. It is reaped."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = 0  # somebody else has reaped it: as subprocess has it
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. subprocess.TimeoutExpired after `timeout` seconds."""
        ends = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if ends is not None and time.monotonic() > ends:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(WAIT_POLL_S)
        return code

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def take_orphans() -> bool:
    """From now on a process whose parent ends becomes a child of this one, where this one has started the first of
    them. False where the system has no such thing."""
    try:
        return ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False  # not Linux


class ExitWatch:
    """Wakes its owner when a process ends, or when `nudge` is called. Costs nothing while it waits.

    `child` is given where the process is our own: then `close` reaps it and `code` is its exit status.
    """

    def __init__(self, pid: int, expected: str, child: Child | None) -> None:
        self.code: int | None = None
        self._pid = pid
        self._identity = expected
        self._child = child
        self._awake = asyncio.Event()
        self._pidfd = self._open()

    def _open(self) -> int | None:
        try:
            descriptor = os.pidfd_open(self._pid)
        except (AttributeError, OSError):
            return None  # no pidfd here, or already gone: `wait` looks for itself
        asyncio.get_running_loop().add_reader(descriptor, self._awake.set)
        return descriptor

    def nudge(self) -> None:
        """Makes `wait` return now."""
        self._awake.set()

    def gone(self) -> bool:
        """Whether the process has ended; reaps it where it is our child."""
        if self._child is None:
            return not is_alive(self._pid, self._identity)
        if self._child.returncode is None and identity(self._pid) is None:
            # while the zombie holds its pid the group's number cannot be another's: take what it left behind with it
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing was left behind
                os.killpg(self._pid, signal.SIGKILL)
        self.code = self._child.poll()
        return self.code is not None

    async def wait(self, timeout_s: float | None) -> bool:
        """Waits for the end, a nudge or the timeout. True when the process has ended."""
        if self._pidfd is None:
            timeout_s = BLIND_POLL_S if timeout_s is None else min(timeout_s, BLIND_POLL_S)
        with contextlib.suppress(TimeoutError):  # the timeout is one of the ways to return
            async with asyncio.timeout(timeout_s):
                await self._awake.wait()
        self._awake.clear()
        return self.gone()

    def close(self) -> None:
        """Stops watching. The process is left as it is."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
