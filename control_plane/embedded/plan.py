"""Which processes make a platform on one machine, and with what arguments each starts. Starts nothing."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from control_plane.embedded.child import ChildSpec
from control_plane.embedded.home import Home
from control_plane.embedded.postgres import EmbeddedPostgres

KNOWN_FAULT = 3
"""Exit code of the prepare program whose last line on stderr is a sentence for people."""
GATEWAY_DRAIN_S = 12.0

WORKER_READY = b'"worker_ready"'
"""What the worker's log holds once it takes jobs."""


@dataclass(frozen=True)
class Platform:
    """What `ebb up` was asked for. `database_url` and `broker_url` are None for the embedded ones."""

    home: Home
    host: str
    port: int
    gateway_port: int
    node_name: str
    database_url: str | None = None
    broker_url: str | None = None
    standby: int = 1
    """Runners that wait, with everything imported, for a replica to become."""

    @property
    def control(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def gateway(self) -> str:
        return f"http://{self.host}:{self.gateway_port}"


def postgres_child(platform: Platform, postgres: EmbeddedPostgres) -> ChildSpec:
    """The embedded database; each start clears away what a killed one left."""
    return ChildSpec(
        name="postgres",
        command=tuple(postgres.command),
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
        log=platform.home.log("postgres"),
        cwd=platform.home.root if postgres.user is None else Path("/"),
        grace_s=10.0,
        stop_signal=signal.SIGINT,
        user=postgres.user,
        before_start=postgres.prepare,
    )


def control_child(platform: Platform, database_url: str) -> ChildSpec:
    arguments = ("--host", platform.host, "--port", str(platform.port), "--gateway-url", platform.gateway)
    env = _environment(platform, database_url)
    return _python(platform, "control", ("control_plane", *arguments, *_home(platform)), env, 5.0)


def worker_child(platform: Platform, database_url: str) -> ChildSpec:
    # A running job is taken up again by the next worker, so there is no use in waiting long for it.
    env = _environment(platform, database_url)
    return _python(platform, "worker", ("control_plane.worker", *_home(platform)), env, 4.0)


def gateway_child(platform: Platform, node_key: str) -> ChildSpec:
    arguments = ("--control", platform.control, "--host", platform.host, "--port", str(platform.gateway_port))
    env = _environment(platform, None) | {"EBB_NODE_KEY": node_key}
    # It drains: streams that are under way may end.
    drain = ("--drain", str(GATEWAY_DRAIN_S))
    return _python(platform, "gateway", ("data_plane.gateway", *arguments, *drain), env, GATEWAY_DRAIN_S + 3.0)


def node_child(platform: Platform, node_key: str) -> ChildSpec:
    arguments = ("--control", platform.control, "--name", platform.node_name, "--host", platform.host, "--port", "0")
    arguments += ("--standby", str(platform.standby))
    env = _environment(platform, None) | {"EBB_NODE_KEY": node_key}
    return _python(platform, "node", ("data_plane.node", *arguments, *_home(platform)), env, 5.0)


def prepare_command() -> tuple[str, ...]:
    """The program that migrates the database and makes sure of the keys."""
    return (sys.executable, "-m", "control_plane.embedded.prepare")


def prepare_environment(platform: Platform, database_url: str, key: str, node_key: str) -> dict[str, str]:
    return _environment(platform, database_url) | {"EBB_ADMIN_KEY": key, "EBB_NODE_KEY": node_key}


def _home(platform: Platform) -> tuple[str, str]:
    return ("--home", str(platform.home.root))


def _python(
    platform: Platform, name: str, arguments: tuple[str, ...], env: dict[str, str], grace_s: float
) -> ChildSpec:
    return ChildSpec(
        name=name,
        command=(sys.executable, "-m", *arguments),
        env=env,
        log=platform.home.log(name),
        cwd=platform.home.root,
        grace_s=grace_s,
    )


def _environment(platform: Platform, database_url: str | None) -> dict[str, str]:
    """The user's environment without the secrets that a process has no use for."""
    own = ("EBB_DATABASE_URL", "EBB_BROKER_URL", "EBB_NODE_KEY", "EBB_ADMIN_KEY")
    env = {name: value for name, value in os.environ.items() if name not in own}
    env |= {"EBB_HOME": str(platform.home.root), "PYTHONUNBUFFERED": "1"}
    if database_url is not None:
        env["EBB_DATABASE_URL"] = database_url
        if platform.broker_url:
            env["EBB_BROKER_URL"] = platform.broker_url
    return env
