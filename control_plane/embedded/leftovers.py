"""Stops what a supervisor that was killed has left running. Knows the order in which a platform stops."""

import signal
import subprocess
import sys
from collections.abc import Callable

from control_plane.embedded.errors import PostgresError
from control_plane.embedded.home import Home
from control_plane.embedded.postgres import embedded_postgres
from control_plane.embedded.records import ProcessRecord, read_record, stop_processes

STOP_ORDER = ("gateway", "node", "worker", "control", "postgres")
RUNNERS_GRACE_S = 45.0


def runners_cleanup_command(home: Home) -> tuple[str, ...]:
    """The program of the node agent that drains and stops every runner of a home."""
    return (sys.executable, "-m", "data_plane.node.cleanup", "--home", str(home.root))


def stop_leftovers(home: Home, *, runners: bool, tell: Callable[[str], None]) -> int:
    """Stop every recorded process that still runs, with `runners` those too. How many processes there were.

    The caller holds the home's lock. Without `runners` they go on serving and the next node agent adopts them.
    """
    record = read_record(home.supervisor)
    alive = [child for child in record.children if child.is_alive()] if record else []
    stopped = 0
    for name in STOP_ORDER:
        found = [child for child in alive if child.name == name]
        stopped += _stop(name, found, tell)
        if name == "node" and runners:
            stop_runners(home)
    stopped += _stop_postgres(home)
    home.supervisor.unlink(missing_ok=True)
    return stopped


def stop_runners(home: Home) -> None:
    """Stop the runners of a home whose agent is gone."""
    subprocess.run(
        runners_cleanup_command(home),
        check=False,
        timeout=RUNNERS_GRACE_S,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=home.root,
    )


def _stop(name: str, found: list[ProcessRecord], tell: Callable[[str], None]) -> int:
    for child in found:
        tell(f"stopping {name} (pid {child.pid}), left by an earlier run")
    stop_processes(found, signal.SIGINT if name == "postgres" else signal.SIGTERM)
    return len(found)


def _stop_postgres(home: Home) -> int:
    """A server that was restarted after the last record was written is found by its data directory."""
    if not home.pgdata.exists():
        return 0
    try:
        postgres = embedded_postgres(home.pgdata)
    except PostgresError:
        # Without its programs no server of ours can be running.
        return 0
    if postgres.running() is None:
        return 0
    postgres.stop()
    return 1
