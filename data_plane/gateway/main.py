"""`python -m data_plane.gateway`: reads arguments and environment once, serves until SIGTERM or SIGINT."""

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence

from data_plane.gateway.app import Gateway
from data_plane.gateway.knowledge import ROUTE_POLICIES
from data_plane.gateway.settings import GatewaySettings
from data_plane.logs import configure_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a drained shutdown, 1 where the port is taken, 2 where an argument is wrong."""
    settings = _settings(arguments)
    configure_logging("gateway")
    try:
        import uvloop

        run = uvloop.run
    except ImportError:  # not on every platform; asyncio's own loop serves as well, a little slower
        run = asyncio.run
    try:
        run(_serve(settings))
    except OSError as error:
        sys.stderr.write(
            f"The gateway cannot listen on {settings.host}:{settings.port}: {error}. Choose another --port.\n"
        )
        return 1
    return 0


async def _serve(settings: GatewaySettings) -> None:
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    gateway = Gateway(settings)
    await gateway.start()
    # what is there now stays: collections of garbage need not walk through it while requests wait
    gc.collect()
    gc.freeze()
    await leave.wait()
    await gateway.stop()


def _settings(arguments: Sequence[str] | None) -> GatewaySettings:
    parser = argparse.ArgumentParser(prog="python -m data_plane.gateway", description="The data path into Ebb.")
    parser.add_argument("--control", required=True, help="URL of the control plane")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7071, help="port to listen on; 0 picks one")
    parser.add_argument("--name", default=f"{socket.gethostname()}-{os.getpid()}", help="name in reports")
    parser.add_argument(
        "--drain", type=float, default=30.0, metavar="S", help="seconds to finish streams in on SIGTERM"
    )
    parser.add_argument(
        "--route-policy",
        choices=ROUTE_POLICIES,
        default="ebb",
        help="how replicas are chosen; all but ebb are for comparing",
    )
    options = parser.parse_args(arguments)
    node_key = os.environ.get("EBB_NODE_KEY", "")
    if not node_key:
        parser.error("EBB_NODE_KEY is not set: it must hold an API key with scope node.")
    return GatewaySettings(
        control_url=options.control,
        node_key=node_key,
        name=options.name,
        host=options.host,
        port=options.port,
        drain_s=options.drain,
        route_policy=options.route_policy,
    )
