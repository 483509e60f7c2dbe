"""A PostgreSQL server and a standby that follows it, from the embedded wheel's programs, each on its own socket."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg

from control_plane.embedded.postgres import EmbeddedPostgres, embedded_postgres

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "io_method": "sync",
    "huge_pages": "off",
    "shared_buffers": "32MB",
    "timezone": "UTC",
}


class Server:
    """One server on one data directory."""

    def __init__(self, data: Path) -> None:
        self.postgres: EmbeddedPostgres = embedded_postgres(data)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.postgres.url

    def start(self) -> None:
        """Starts it (again) and waits until it answers."""
        settings = SETTINGS | {"unix_socket_directories": str(self.postgres.socket_dir)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self.postgres.programs / "postgres"), "-D", str(self.postgres.data), *options]
        with (self.postgres.data.parent / f"{self.postgres.data.name}.log").open("ab") as log:
            self.process = self._as_user(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)

    def stop_at_once(self) -> None:
        """As `pg_ctl stop -m immediate`: nothing is flushed, no connection is ended well."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in psutil.Process(self.process.pid).children():
                        child.kill()
                self.process.kill()
                self.process.wait()

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """One statement in a connection of its own; its rows."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def run(self, program: str, *arguments: str) -> None:
        """One of the server's programs, to its end."""
        done = self._as_user(
            [str(self.postgres.programs / program), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, errors = done.communicate(timeout=60)
        assert done.returncode == 0, errors

    def _as_user(self, command: list[str], *, stdout: Any, stderr: Any) -> "subprocess.Popen[bytes]":
        user = self.postgres.user
        return subprocess.Popen(
            command,
            stdout=stdout,
            stderr=stderr,
            cwd="/",
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )


class Pair:
    """`url` names both: whoever connects gets the one that takes writes."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ebb-pair-"))
        self._folder.chmod(0o711)
        self.primary = Server(self._folder / "a")
        self.standby = Server(self._folder / "b")
        user = self.primary.postgres.user
        if user is not None:
            os.chown(self._folder, user.uid, user.gid)

    @property
    def url(self) -> str:
        folders = f"{self.primary.postgres.socket_dir},{self.standby.postgres.socket_dir}"
        return f"postgresql://postgres@/postgres?host={folders}&target_session_attrs=read-write"

    def start(self) -> None:
        """Both, the standby following."""
        self.primary.postgres.prepare()
        self.primary.start()
        source = f"host={self.primary.postgres.socket_dir} user=postgres"
        self.primary.run(
            "pg_basebackup", "-D", str(self.standby.postgres.data), "-d", source, "-R", "-c", "fast", "-N"
        )  # fmt: skip
        for copied in self.standby.postgres.data.glob(".s.PGSQL.*"):
            copied.unlink()  # the primary's socket lies in its data directory
        self.standby.start()

    def catch_up(self) -> None:
        """Returns once the standby has all that the primary has now."""
        [(wanted,)] = self.primary.execute("select pg_current_wal_lsn()::text")
        deadline = time.monotonic() + 20
        while self.standby.execute(f"select pg_last_wal_replay_lsn() >= '{wanted}'::pg_lsn") != [(True,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def cut(self) -> None:
        """From now on the standby hears nothing, as if it were far behind."""
        self.standby.execute("alter system set primary_conninfo = ''")
        self.standby.execute("select pg_reload_conf()")
        deadline = time.monotonic() + 20
        while self.standby.execute("select count(*) from pg_stat_wal_receiver") != [(0,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def fail_over(self) -> None:
        """The primary is gone; the standby takes writes."""
        self.primary.stop_at_once()
        self.standby.execute("select pg_promote(true, 30)")

    def close(self) -> None:
        """Both are gone."""
        self.standby.stop_at_once()
        self.primary.stop_at_once()
        shutil.rmtree(self._folder, ignore_errors=True)
