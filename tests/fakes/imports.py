"""An import process without its start: forked from one that has imported all it needs, which is two seconds less. Knows
nothing of what is imported."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["data_plane.weights.__main__"])
LONGEST_S = 120.0


def _child(arguments: list[str], environment: dict[str, str], stdout: str, stderr: str) -> None:
    from data_plane.weights.__main__ import main

    os.environ.update(environment)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.exit(main(arguments))


def run_forked(arguments: list[str], folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """What `python -m data_plane.weights` with these arguments says and ends with; its output is kept in `folder`.
    What it reads of the environment as it is imported is that of this process."""
    stdout, stderr = folder / "import.out", folder / "import.err"
    process = CONTEXT.Process(target=_child, args=(arguments, environment, str(stdout), str(stderr)))
    process.start()
    process.join(LONGEST_S)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(arguments, LONGEST_S)
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout.read_bytes(), stderr.read_bytes())
