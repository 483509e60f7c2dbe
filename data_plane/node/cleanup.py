"""Stops every runner that an agent recorded under a home, without an agent: `python -m data_plane.node.cleanup`.

For `ebb down`. Run it when the agent has ended. Needs psutil alone, and knows nothing of HTTP.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from data_plane.node import processes, records
from data_plane.node.standby import claimed_pid


def stop_all(home: Path, grace_s: float = 10.0) -> int:
    """SIGTERM to each recorded runner, SIGKILL after `grace_s`, and the records removed. How many there were."""
    paths = records.NodePaths(home.expanduser().resolve())
    if not paths.run.is_dir():
        return 0
    found, broken = records.load_all(paths)
    living: list[tuple[int, str]] = []
    for record in found:
        if record.ended is None and record.pid and processes.is_alive(record.pid, record.identity):
            living.append((record.pid, record.identity))
    unnamed = [record.replica_id for record in found if record.ended is None and not record.pid]
    for replica_id in unnamed + broken:
        # the agent ended while it started this one: only the command line knows its pid
        for pid in processes.find_by_argument(str(paths.spec(replica_id))):
            living.append((pid, processes.identity(pid) or ""))
    for pid in [claimed_pid(paths.status(replica_id)) for replica_id in broken]:
        if pid is not None:
            living.append((pid, processes.identity(pid) or ""))
    for pid, who in living:
        processes.terminate(pid, who)
    _kill_rest(living, time.monotonic() + grace_s)
    for replica_id in [record.replica_id for record in found] + broken:
        records.remove(paths, replica_id)
    return len(living)


def _kill_rest(living: list[tuple[int, str]], deadline: float) -> None:
    rest = list(living)
    while rest:
        _reap(rest)
        rest = [(pid, who) for pid, who in rest if processes.is_alive(pid, who)]
        if time.monotonic() > deadline:
            for pid, who in rest:
                processes.kill_group(pid, who)
        if rest:
            time.sleep(0.02)


def _reap(rest: list[tuple[int, str]]) -> None:
    """Takes the exit status of those that are our own children, where a program calls `stop_all` itself."""
    for pid, _ in rest:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue  # not ours: its parent or init takes it


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data_plane.node.cleanup", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--grace", type=float, default=10.0, help="seconds from SIGTERM to SIGKILL")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a half-done clean-up would leave runners behind
    count = stop_all(arguments.home, arguments.grace)
    print(f"Stopped {count} runner{'' if count == 1 else 's'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
