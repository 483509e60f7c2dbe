"""`python -m data_plane.node`: reads the command line and puts the agent's parts together."""

import argparse
import asyncio
import os
import secrets
import shlex
import signal
import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import structlog
from aiohttp import web

from data_plane.logs import configure_logging
from data_plane.node import devices
from data_plane.node.agent import Agent, Fenced, Tempo
from data_plane.node.bandwidth import read_bytes_per_s
from data_plane.node.control import ControlClient, HttpDrainer
from data_plane.node.credential import Credential, Removed
from data_plane.node.fleet import Fleet
from data_plane.node.guard import Guard
from data_plane.node.identity import Membership, machine_id, read_membership
from data_plane.node.launch import RunnerSettings
from data_plane.node.lock import Locked, hold
from data_plane.node.metrics import NodeMetrics
from data_plane.node.peers import Peers, Word
from data_plane.node.records import NodePaths
from data_plane.node.server import Server
from data_plane.node.tenure import Tenure
from data_plane.wire.fleet import NodeRegistration
from data_plane.wire.names import NAME_RULE, is_name

log = structlog.get_logger()
VERSION = "0.1.0"
GONE = 4
"""Exit code of an agent whose node was removed: starting it again would not help."""
MOST_STANDBYS = 16
SNAPSHOT_MB = "EBB_KV_SNAPSHOT_MB"
"""Of the KV blocks that an endpoint's runner keeps on disk for the next one; 0: none are kept."""
SNAPSHOTS_MB = "EBB_KV_SNAPSHOTS_MB"
"""Of those of all endpoints together."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the command line and the environment decide, read once."""

    control: str
    key: str
    home: Path
    name: str
    host: str = "127.0.0.1"
    port: int = 0
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    tempo: Tempo = field(default_factory=Tempo)
    stop_runners_on_exit: bool = False
    membership: Membership | None = None
    """Of a node that joined; then `key` is empty."""
    memory_bytes: int = 0
    """The most of the machine's memory that replicas may count on; 0: all."""


def parse(arguments: list[str], environment: dict[str, str]) -> Settings:
    """Settings from the command line; exits with a sentence where something is missing."""
    defaults = RunnerSettings()
    parser = argparse.ArgumentParser(prog="python -m data_plane.node", description=__doc__)
    parser.add_argument("--control", required=True, metavar="URL", help="the control plane")
    parser.add_argument("--home", type=Path, required=True, help="where artifacts, logs and records lie")
    parser.add_argument("--name", required=True, help=f"this machine's name: {NAME_RULE}")
    parser.add_argument("--host", default="127.0.0.1", help="what it and its runners listen on and are reached at")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--stop-runners-on-exit", action="store_true", help="else they go on, to be adopted")
    parser.add_argument("--runner-command", default=shlex.join(defaults.command), help="what starts a runner")
    parser.add_argument("--stall-s", type=float, default=defaults.stall_s, help="give a start up after no progress")
    parser.add_argument("--drain-s", type=float, default=defaults.drain_s, help="how long a drain may take")
    parser.add_argument("--grace-s", type=float, default=defaults.grace_s, help="from SIGTERM to SIGKILL")
    parser.add_argument(
        "--memory",
        default=environment.get("EBB_NODE_MEMORY", ""),
        metavar="SIZE",
        help="of this machine's memory the most that replicas are placed by, such as 8GiB (EBB_NODE_MEMORY)",
    )
    parser.add_argument("--standby", type=int, default=1, metavar="N", help="runners that wait, all imported")
    options = parser.parse_args(arguments)
    key = environment.get("EBB_NODE_KEY", "")
    home = options.home.expanduser().resolve()
    try:
        membership = None if key else read_membership(NodePaths(home).membership)
    except ValueError as error:
        parser.error(str(error))
    if not key and membership is None:
        parser.error(
            "EBB_NODE_KEY is not set, and this home has not joined a platform. Join with `ebb node join URL --token "
            "TOKEN`, or give it a key with scope node: `ebb keys create --scope node`."
        )
    if not 0 <= options.standby <= MOST_STANDBYS:
        parser.error(f"--standby {options.standby}: from 0 to {MOST_STANDBYS} runners can wait.")
    if not is_name(options.name):
        parser.error(f"--name {options.name!r} is not a name: {NAME_RULE}.")
    try:
        memory_bytes = devices.parse_size(options.memory) if options.memory else 0
    except ValueError as error:
        parser.error(f"--memory (EBB_NODE_MEMORY): {error}")
    return Settings(
        control=options.control,
        key=key,
        home=home,
        name=options.name,
        host=options.host,
        port=options.port,
        runner=_runner_settings(parser, options, environment),
        stop_runners_on_exit=options.stop_runners_on_exit,
        membership=membership,
        memory_bytes=memory_bytes,
    )


def _runner_settings(
    parser: argparse.ArgumentParser, options: argparse.Namespace, environment: dict[str, str]
) -> RunnerSettings:
    """How runners are started; exits with a sentence for an amount that is no number."""
    defaults = RunnerSettings()
    limits: list[int] = []
    for name, default in ((SNAPSHOT_MB, defaults.snapshot_bytes), (SNAPSHOTS_MB, defaults.snapshots_bytes)):
        text = environment.get(name, "") or str(default >> 20)
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            parser.error(f"{name} is {text[:40]!r}; it must be a whole number of MiB, 0 for none.")
        limits.append(int(text) << 20)
    return RunnerSettings(
        command=tuple(shlex.split(options.runner_command)),
        stall_s=options.stall_s,
        drain_s=options.drain_s,
        grace_s=options.grace_s,
        standby=options.standby,
        forks=sys.platform == "linux" and tuple(shlex.split(options.runner_command)) == defaults.command,
        snapshot_bytes=limits[0],
        snapshots_bytes=limits[1],
    )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Runs the agent until `stop` is set. Raises Fenced, or OSError where the port cannot be had."""
    paths = NodePaths(settings.home)
    metrics = NodeMetrics()
    async with aiohttp.ClientSession() as session:
        runner = replace(settings.runner, warm=settings.runner.warm or _warm(), host=_reached_at(settings.host))
        peers, tenure = Peers(session), Tenure(paths.lease)
        fleet = Fleet(paths, runner, HttpDrainer(session), metrics, peers)
        guard = Guard(tenure, peers, fleet)
        token = secrets.token_urlsafe(32)
        agents: list[Agent] = []
        server = Server(
            *(fleet, paths, metrics, session, token, lambda: any(agent.is_ready for agent in agents)),
            *(peers, lambda: Word(tenure.heard_s, tenure.back_s)),
        )
        http = web.AppRunner(server.app(), access_log=None, shutdown_timeout=1.0)
        await http.setup()
        try:
            await web.TCPSite(http, settings.host, settings.port).start()
            fleet.adopt()
            guard.resume()
            registration = _present(settings, http, token)
            log.info("node.listening", url=registration.agent_url)
            client = ControlClient(session, settings.control, settings.key)
            known = settings.membership
            credential = None if known is None else Credential(client, known, paths.membership)
            agent = Agent(client, fleet, registration, settings.tempo, guard, credential)
            agents.append(agent)
            try:
                await _run_until(agent, stop)
            except (Fenced, Removed) as error:
                guard.replaced(str(error))
                await fleet.stop_all()
                raise
            if settings.stop_runners_on_exit:
                await fleet.stop_all()
        finally:
            await http.cleanup()
            await fleet.close()


def _warm() -> str:
    """What runners in waiting make ready: on a CPU torch only once a model was seen to need it."""
    cards = [device for device in devices.find() if device.kind == "cuda"]
    return f"cuda:{cards[0].index}" if cards else ""


async def _run_until(agent: Agent, stop: asyncio.Event) -> None:
    running = asyncio.create_task(agent.run(), name="agent")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if running.done():
        running.result()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def _present(settings: Settings, http: web.AppRunner, token: str) -> NodeRegistration:
    hostname = socket.gethostname()
    memory = devices.memory()
    return NodeRegistration(
        name=settings.name,
        host=hostname,
        agent_url=f"http://{_reached_at(settings.host)}:{http.addresses[0][1]}",
        agent_token=token,
        devices=devices.find(settings.memory_bytes),
        cpus=devices.cpus(),
        memory_bytes=memory.total_bytes,
        version=VERSION,
        read_bytes_per_s=read_bytes_per_s(),
        machine=machine_id(settings.home),
    )


def _reached_at(host: str) -> str:
    return socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound


async def _serve_until_signalled(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(settings, stop)


def main() -> int:
    """The process's exit code: 0 when told to stop, 1 with a sentence on stderr otherwise."""
    settings = parse(sys.argv[1:], dict(os.environ))
    os.environ.pop("EBB_NODE_KEY", None)  # nothing that we start has any use for it
    configure_logging("node")
    paths = NodePaths(settings.home)
    try:
        paths.make()
        with hold(paths.lock, settings.home):
            asyncio.run(_serve_until_signalled(settings))
    except (Locked, Fenced) as error:
        return _fail(str(error))
    except Removed as error:
        _fail(str(error))
        return GONE
    except OSError as error:
        return _fail(f"The node agent cannot run: {error}. Check --home, --host and --port.")
    return 0


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1
