"""`python -m control_plane.embedded.node`: keeps the agent of a machine that joined running, and nothing else.

Tells its parent what happens as `python -m control_plane.embedded` does. Its home is stopped like any other, by
`ebb down`. Knows how to start the agent, not what it does.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from control_plane.embedded.__main__ import Reporter
from control_plane.embedded.child import Child
from control_plane.embedded.errors import StartError
from control_plane.embedded.home import Home
from control_plane.embedded.leftovers import stop_leftovers, stop_runners
from control_plane.embedded.membership import JoinedNode, read_membership
from control_plane.embedded.plan import joined_child
from control_plane.embedded.records import SupervisorRecord, record_of
from control_plane.embedded.supervisor import START_TIMEOUT_S, last_line, rotate_logs, take_home

REMOVED = 4
"""The agent's exit code once its node was removed; see data_plane.node.main."""
REGISTERED = b'"node.registered"'
"""What the agent's log holds once the control plane knows it."""
_GIVE_UP_EXITS = 4
_POLL_S = 0.05


class NodeSupervisor:
    """Runs one agent. `tell` receives a short line whenever something happens that a person may want to know."""

    def __init__(self, node: JoinedNode, tell: Callable[[str], None]) -> None:
        self._node = node
        self._tell = tell
        self._ended = asyncio.Event()
        self._ready = False
        self._child = Child(joined_child(node.home, node.control, node.name, node.address, node.standby), self._changed)

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Until SIGTERM or SIGINT. Raises StartError where the agent cannot start, or its node was removed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._ended.set)
        rotate_logs(self._node.home)
        self._child.start()
        try:
            await self._wait_ready()
            if not self._ended.is_set():
                self._ready = True
                self._write_record()
                on_ready()
                await self._ended.wait()
            if REMOVED in self._child.exits:
                raise StartError(last_line(self._node.home.log("node")))
        finally:
            await self._child.stop()
            await asyncio.to_thread(stop_runners, self._node.home)
            self._node.home.supervisor.unlink(missing_ok=True)

    async def _wait_ready(self) -> None:
        log = self._node.home.log("node")
        self._tell(f"waiting for the control plane at {self._node.control}")
        waited_s = 0.0
        while not self._ended.is_set() and not (log.exists() and REGISTERED in log.read_bytes()):
            if len(self._child.exits) >= _GIVE_UP_EXITS or waited_s > START_TIMEOUT_S:
                raise StartError(f"The node agent does not start. Its last words, in {log}: {last_line(log)}")
            await asyncio.sleep(_POLL_S)
            waited_s += _POLL_S

    def _changed(self, child: Child) -> None:
        if child.record is None and not self._ended.is_set():
            if child.exits[-1] == REMOVED:
                self._ended.set()
            else:
                self._tell(f"the node agent ended with code {child.exits[-1]}; starting it again")
        self._write_record()

    def _write_record(self) -> None:
        children = () if self._child.record is None else (self._child.record,)
        own = record_of("supervisor", os.getpid())
        SupervisorRecord(own, self._node.control, "", self._ready, children).write(self._node.home.supervisor)


def run_here(node: JoinedNode, tell: Callable[[str], None], on_ready: Callable[[], None]) -> None:
    """Runs it in this process until a signal. Raises StartError, AlreadyRunningError."""
    lock = take_home(node.home)
    try:
        stop_leftovers(node.home, runners=False, tell=tell)
        asyncio.run(NodeSupervisor(node, tell).run(on_ready))
    finally:
        lock.release()


def main() -> int:
    """Run a joined node until SIGTERM; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m control_plane.embedded.node")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--standby", type=int, default=None)
    given = parser.parse_args()
    home, reporter = Home(given.home), Reporter()

    try:
        member = read_membership(home)
        if member is None:
            raise StartError(f"{home.root} has not joined a platform. Join with 'ebb node join URL --token TOKEN'.")
        node = JoinedNode(home, member["control"], member["name"], given.address, given.standby)

        def ready() -> None:
            reporter.line({"ready": {"node": node.name, "control": node.control}})
            reporter.close()

        run_here(node, lambda text: reporter.line({"tell": text}), ready)
    except StartError as error:
        reporter.line({"failed": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
