"""`python -m control_plane.embedded`: the supervisor without a terminal, as `ebb up` starts it.

Tells its parent what happens, one JSON object a line on stdout: {"tell": …} until {"ready": {…}} or {"failed": …}.
After that it needs no parent.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from control_plane.embedded.errors import StartError
from control_plane.embedded.home import Credentials, Home
from control_plane.embedded.plan import Platform
from control_plane.embedded.supervisor import Supervisor, take_home


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m control_plane.embedded")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7070)
    parser.add_argument("--gateway-port", type=int, default=7071)
    parser.add_argument("--name", required=True)
    parser.add_argument("--standby", type=int, default=1)
    return parser.parse_args()


class Reporter:
    """Lines for the parent; whether it still reads them does not matter."""

    def line(self, message: dict[str, Any]) -> None:
        try:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # The command that started this was stopped; the platform goes on and its log has the lines.
            self.close()

    def close(self) -> None:
        """Let go of the parent's pipe, so that it sees the end; later lines go to the log."""
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    async def ready(self, credentials: Credentials) -> None:
        self.line({"ready": credentials})
        self.close()


def main() -> int:
    """Run a platform until SIGTERM; the exit code."""
    given = _arguments()
    home = Home(given.home)
    platform = Platform(
        home=home,
        host=given.host,
        port=given.port,
        gateway_port=given.gateway_port,
        node_name=given.name,
        standby=given.standby,
        database_url=os.environ.get("EBB_DATABASE_URL") or None,
        broker_url=os.environ.get("EBB_BROKER_URL") or None,
    )
    reporter = Reporter()
    try:
        lock = take_home(home)
        try:
            asyncio.run(Supervisor(platform, lambda text: reporter.line({"tell": text})).run(reporter.ready))
        finally:
            lock.release()
    except StartError as error:
        reporter.line({"failed": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
