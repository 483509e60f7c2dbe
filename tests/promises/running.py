"""One running Ebb, as a person would start it: `ebb up --detach` on a home of its own, real processes throughout.

Knows the commands and URLs that the README promises, and nothing of how they are kept.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import psycopg
from psycopg import sql

T = TypeVar("T")
EBB = [sys.executable, "-m", "control_plane.cli.main"]


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def servers_for(home: Path) -> dict[str, str]:
    """Environment that puts a home on the PostgreSQL and broker of EBB_TEST_DATABASE_URL and EBB_TEST_BROKER_URL.

    Each home gets a database of its own, and it keeps it. Empty without these variables: then all is embedded.
    """
    env: dict[str, str] = {}
    server, broker = os.environ.get("EBB_TEST_DATABASE_URL"), os.environ.get("EBB_TEST_BROKER_URL")
    name = "home_" + "".join(c if c.isalnum() else "_" for c in home.name.lower())
    if server:
        with psycopg.connect(server, autocommit=True) as connection:
            found = connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone()
            if not found:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        env["EBB_DATABASE_URL"] = urlsplit(server)._replace(path=f"/{name}").geturl()
    if broker:
        # Redis has 16 numbered databases: two platforms at a time do not take each other's hints.
        env["EBB_BROKER_URL"] = urlsplit(broker)._replace(path=f"/{sum(name.encode()) % 16}").geturl()
    return env


def wait_for(what: str, probe: Callable[[], T | None], timeout_s: float = 60, every_s: float = 0.1) -> T:
    """The first true answer of `probe`; fails with `what` when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {timeout_s} s for {what}.")
        time.sleep(every_s)


@dataclass
class Platform:
    """A started platform. `key` is the admin key of its credentials file."""

    home: Path
    control: str
    gateway: str
    key: str
    up_s: float

    @classmethod
    def up(cls, home: Path) -> "Platform":
        """Starts one and returns when it says that it is ready."""
        started = time.monotonic()
        done = subprocess.run(
            [
                *(*EBB, "up", "--home", str(home), "--port", str(free_port())),
                *("--gateway-port", str(free_port()), "--detach", "-o", "json"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **servers_for(home)},
        )
        assert done.returncode == 0, done.stderr + done.stdout
        said = json.loads(done.stdout)
        return cls(home, said["control"], said["gateway"], said["key"], time.monotonic() - started)

    def down(self) -> None:
        """Stops everything."""
        self.ebb("down")

    def ebb(self, *args: str, check: bool = True, stdin: str | None = None, timeout_s: float = 120) -> str:
        """Runs a command on this home and returns what it printed."""
        done = self.run(*args, stdin=stdin, timeout_s=timeout_s)
        if check:
            assert done.returncode == 0, f"ebb {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, *args: str, stdin: str | None = None, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
        """The same, whatever its exit status."""
        return subprocess.run(
            [*EBB, *args, "--home", str(self.home)], capture_output=True, text=True, input=stdin, timeout=timeout_s
        )

    def rest(self, method: str, path: str, json: Any = None, key: str | None = None) -> httpx.Response:
        """One call of the management API."""
        return httpx.request(
            method,
            self.control + path,
            json=json,
            headers={"Authorization": f"Bearer {key or self.key}"},
            timeout=60,
        )

    def client(self, endpoint: str = "chat", key: str | None = None) -> openai.OpenAI:
        """The official client on an endpoint's URL."""
        return openai.OpenAI(
            base_url=f"{self.gateway}/e/{endpoint}/v1", api_key=key or self.key, max_retries=0, timeout=120
        )

    def post(self, endpoint: str, path: str = "chat/completions", **options: Any) -> httpx.Response:
        """A raw request to an endpoint."""
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return httpx.post(f"{self.gateway}/e/{endpoint}/v1/{path}", headers=headers, timeout=120, **options)

    def row(self, endpoint: str = "chat") -> dict[str, Any]:
        """The endpoint's row of `ebb ps -o json`, by the API."""
        return self.rest("GET", f"/api/v1/endpoints/{endpoint}").json()

    def wait_state(self, state: str, endpoint: str = "chat", timeout_s: float = 60) -> dict[str, Any]:
        """Waits until the endpoint is in `state`."""

        def probe() -> dict[str, Any] | None:
            row = self.row(endpoint)
            return row if row["state"] == state else None

        return wait_for(f"{endpoint} to be {state}", probe, timeout_s)

    def replicas(self, endpoint: str = "chat", *, all: bool = False) -> list[dict[str, Any]]:
        """Replicas of an endpoint; without `all` only those that have not ended."""
        items = self.rest("GET", f"/api/v1/replicas?endpoint={endpoint}").json()["items"]
        return [r for r in items if all or r["ended_at"] is None]

    def runner_pids(self) -> list[int]:
        """Pids of the runner processes that this home started."""
        return [p.pid for p in self.processes() if "data_plane.runner" in p.info["cmdline"]]

    def pid_of(self, module: str) -> int:
        """The pid of one of the platform's processes, by its module."""
        found = [p.pid for p in self.processes() if module in p.info["cmdline"]]
        assert found, f"no process runs {module}"
        return min(found)

    def processes(self) -> list[psutil.Process]:
        """All processes that carry this home in their command line or environment, the supervisor's tree included."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline"]):
            try:
                own = str(self.home) in " ".join(process.info["cmdline"] or []) or str(self.home) in " ".join(
                    process.environ().values()
                )
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended while we looked, or is another user's
            if own and process.pid != os.getpid():
                found.append(process)
        return found
