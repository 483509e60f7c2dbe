"""A runner before it knows its model: everything is imported, and it waits, without any work, for its spec.

Its standard input is one end of a socket pair of which the agent holds the other: nobody else can speak to it, and when
the agent is gone it reads an end there and leaves. Knows nothing of models. Imports nothing of ours at first, so that
the imports can be done at the lowest priority.

A *template* never becomes a runner: it forks runners in waiting, each in milliseconds, where importing takes a second.
A fork of a fork that ended is the agent's own child, because the agent has said that it takes orphans in. What was
imported and opened has no threads but those of libraries that see to forks themselves (OpenBLAS). A CUDA context would
not outlive a fork, so where there is one each runner in waiting is a process of its own.
"""

import argparse
import contextlib
import gc
import importlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

READY = b"ready\n"
FORKED = b"ready %d\n"
"""With the process id of a fork."""
LONGEST_LINE = 65_536
LOWEST = 19
BASE = (
    "data_plane.runner.main",
    "data_plane.execution",
    "data_plane.execution.native_loading",
    "encodings.idna",
    "tokenizers",
    "jinja2.sandbox",
)
"""What every runner needs. The native library is loaded by the way."""
TORCH = ("torch", "data_plane.execution.loading")
"""What models need that the native decoder does not serve: two seconds and 180 MB, so only where they are run."""


def main() -> int:
    """`python -m data_plane.runner --standby [--warm torch|DEVICE]`: the exit code of the runner that it becomes."""
    parser = argparse.ArgumentParser(prog="data_plane.runner", description=__doc__)
    parser.add_argument("--standby", action="store_true", required=True)
    parser.add_argument("--template", action="store_true", help="fork runners in waiting instead of being one")
    parser.add_argument("--warm", default="", metavar="DEVICE", help="torch, or a device whose context is made too")
    parser.add_argument("--text", action="append", default=[], metavar="DIR", help="an artifact likely to be served")
    options = parser.parse_args()
    prepared = _prepare_quietly(options.warm, options.text)
    line = _offspring(prepared) if options.template else _assignment(READY)
    if line is None:
        return 0
    claimed_at = time.time()
    import msgspec

    from data_plane.runner.main import become
    from data_plane.wire.fleet import Assignment

    assignment = msgspec.json.decode(line, type=Assignment)
    _take_log(assignment.log_path)
    return become(assignment.spec_path, claimed_at, prepared)


def _prepare_quietly(warm: str, folders: list[str]) -> Any:
    """Imports, and opens the tokenizers of `folders`: gives a `prepared.Prepared`.

    Gives None where an import failed; the thread has said why.
    """
    made: list[Any] = []

    def work() -> None:
        _import_all(warm)
        from data_plane.runner.prepared import Prepared

        prepared = Prepared()
        made.append(prepared)
        prepared.only([Path(folder) for folder in folders])

    _quietly(work)
    # what was imported lives as long as the process: no start shall walk it again
    gc.collect()
    gc.freeze()
    return made[0] if made else None


def _quietly(work: Callable[[], None]) -> None:
    """In a thread of its own, whose priority ends with it: nobody but root could raise that of the process again."""

    def lowest() -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        work()

    thread = threading.Thread(target=lowest, name="prepare")
    thread.start()
    thread.join()


def _import_all(warm: str) -> None:
    for name in (*BASE, *(TORCH if warm else ())):
        importlib.import_module(name)
    from kernels.cpu.library import backend_name, library_digest

    backend_name()
    library_digest()
    if warm.startswith("cuda"):
        import torch

        # the context is most of what a first use of the device costs; the context lives on, the tensor does not
        with contextlib.suppress(RuntimeError):  # the start that claims this one will say what is wrong with it
            torch.zeros(1, device=warm).cpu()


def _offspring(prepared: Any) -> bytes | None:
    """As a template: forks when it is told to. Returns in a fork, with its assignment; None where there is no agent any
    more."""
    if prepared is None:
        return None
    import msgspec

    from data_plane.wire.fleet import TemplateOrder

    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(0)) as channel:  # the agent is gone
        channel.send(READY)
        while True:
            order, descriptors, _, _ = socket.recv_fds(channel, LONGEST_LINE, 1)
            if not order:
                return None
            if descriptors:
                if _fork(channel, descriptors[0]):
                    break
                continue
            folders = [Path(folder) for folder in msgspec.json.decode(order, type=TemplateOrder).texts]
            _quietly(lambda folders=folders: prepared.only(folders))
            channel.send(READY)
        return _assignment(FORKED % os.getpid())
    return None


def _fork(channel: socket.socket, descriptor: int) -> bool:
    """True in the fork: a child of the agent, in a session of its own, that has `descriptor` as its standard input."""
    between = os.fork()
    if between:
        os.close(descriptor)
        os.waitpid(between, 0)
        return False
    try:
        between = os.getpid()
        if os.fork():
            os._exit(0)
        while os.getppid() == between:  # until the agent is its parent
            time.sleep(0.0005)
        channel.close()
        os.setsid()
        os.dup2(descriptor, 0)
        os.close(descriptor)
    except OSError:
        os._exit(1)
    return True


def _assignment(greeting: bytes) -> bytes | None:
    """The agent's line, or None where there is no agent any more."""
    try:
        os.write(0, greeting)
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(0, LONGEST_LINE)
            if not piece or len(line) > LONGEST_LINE:
                return None
            line += piece
    except OSError:
        return None  # the agent is gone
    return line


def _take_log(path: str) -> None:
    """From now on this process writes to the log of its replica, and reads nothing."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
