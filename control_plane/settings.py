"""What a process of the control plane is told when it starts: arguments and environment, read once. Knows no defaults
of other processes and nothing of the database behind the URL."""

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_plane.wire.names import is_name


class SettingsError(ValueError):
    """A setting is missing or makes no sense; the message says which, and what to set instead."""


@dataclass(frozen=True)
class Settings:
    """All that decides how a process of the control plane runs. URLs without a trailing slash."""

    home: Path
    database_url: str
    """`postgresql://…`, as people write it."""
    broker_url: str
    """A Celery broker URL; `filesystem://` keeps its messages under `home`/broker."""
    gateway_url: str
    """Where clients reach the gateway: part of every endpoint's URL."""
    instance: str
    """Who holds the lease. Stable over restarts, so that a restarted process leads again at once."""
    host: str = "127.0.0.1"
    port: int = 7070
    lease_s: float = 10.0
    """How long a node may run its replicas without being heard (see nodes/lease.py)."""
    usage_days: int = 30
    """How long it is kept what requests used."""
    import_command: tuple[str, ...] = (sys.executable, "-m", "data_plane.weights", "import")
    """The program that turns a source into an artifact."""

    @property
    def artifacts_dir(self) -> Path:
        """Where artifacts live, each in a folder named by its digest."""
        return self.home / "artifacts"

    @property
    def scratch_dir(self) -> Path:
        """Where jobs may leave what does not matter after them."""
        return self.home / "scratch"

    @property
    def broker_dir(self) -> Path:
        """Where the filesystem broker keeps its messages."""
        return self.home / "broker"


def parser(program: str) -> argparse.ArgumentParser:
    """The arguments that control plane and worker share."""
    arguments = argparse.ArgumentParser(prog=program)
    arguments.add_argument("--home", default=None, help="folder of all local state (default: EBB_HOME or ~/.ebb)")
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=int, default=7070)
    arguments.add_argument("--gateway-url", default=None, help="where clients reach the gateway (EBB_GATEWAY_URL)")
    return arguments


def read(program: str, argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings of this process. Raises SettingsError."""
    given = parser(program).parse_args(argv)
    env = os.environ if environ is None else environ
    home = Path(given.home or env.get("EBB_HOME") or "~/.ebb").expanduser().resolve()
    gateway_url = (given.gateway_url or env.get("EBB_GATEWAY_URL") or "http://127.0.0.1:7071").rstrip("/")
    if not gateway_url.startswith(("http://", "https://")):
        raise SettingsError(f"EBB_GATEWAY_URL is '{gateway_url}'; it must start with http:// or https://.")
    instance = env.get("EBB_INSTANCE") or _default_instance(given.port)
    if not is_name(instance):
        raise SettingsError(f"EBB_INSTANCE is '{instance}'; use lower-case letters, digits, '.', '_' and '-'.")
    return Settings(
        home=home,
        database_url=_database_url(env.get("EBB_DATABASE_URL", "")),
        broker_url=env.get("EBB_BROKER_URL") or "filesystem://",
        gateway_url=gateway_url,
        instance=instance,
        host=given.host,
        port=given.port,
        lease_s=_lease_s(env.get("EBB_LEASE_S", "")),
        usage_days=_usage_days(env.get("EBB_USAGE_DAYS", "")),
    )


def _lease_s(text: str) -> float:
    try:
        lease_s = float(text or "10")
    except ValueError:
        lease_s = 0.0
    if not 1 <= lease_s <= 3600:
        raise SettingsError(f"EBB_LEASE_S is '{text[:40]}'; it is a number of seconds from 1 to 3600, by default 10.")
    return lease_s


def _usage_days(text: str) -> int:
    days = int(text or "30") if (text or "30").isascii() and (text or "30").isdigit() and len(text) < 5 else 0
    if not 1 <= days <= 3660:
        raise SettingsError(f"EBB_USAGE_DAYS is '{text[:40]}'; it is a number of days from 1 to 3660, by default 30.")
    return days


def _default_instance(port: int) -> str:
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname().lower())[:50]
    return f"{host.strip('._-') or 'host'}-{port}"


def _database_url(url: str) -> str:
    if not url:
        raise SettingsError(
            "EBB_DATABASE_URL is not set. Set it to postgresql://user:password@host/name, or start everything with "
            "'ebb up', which brings its own PostgreSQL."
        )
    for prefix in ("postgresql://", "postgres://", "postgresql+psycopg://"):
        if url.startswith(prefix):
            return "postgresql://" + url.removeprefix(prefix)
    scheme = url.partition(":")[0]
    raise SettingsError(f"EBB_DATABASE_URL starts with '{scheme}:'; only postgresql:// (15 or newer) is supported.")
