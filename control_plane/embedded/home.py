"""The home directory: where each file of a platform lies, and who may read it. Knows nothing of processes."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from control_plane.embedded.errors import HomeError


class Credentials(TypedDict):
    """What every `ebb` command needs to speak to a platform."""

    control: str
    gateway: str
    key: str


class Secrets(TypedDict):
    """What the platform's own processes use among themselves."""

    node_key: str


def default_home() -> Path:
    """`EBB_HOME`, or `~/.ebb`."""
    return Path(os.environ.get("EBB_HOME") or "~/.ebb").expanduser().absolute()


@dataclass(frozen=True)
class Home:
    """A home directory by its path. Nothing is made or opened before it is asked for."""

    root: Path

    @property
    def credentials(self) -> Path:
        return self.root / "credentials.json"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets.json"

    @property
    def pgdata(self) -> Path:
        return self.root / "pgdata"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        return self.root / "run" / "lock"

    @property
    def supervisor(self) -> Path:
        return self.root / "run" / "supervisor.json"

    @property
    def demo(self) -> Path:
        """Exists once `ebb up --demo` has made its first endpoint."""
        return self.root / "demo.json"

    def log(self, process: str) -> Path:
        """The log file of one process of the platform."""
        return self.logs / f"{process}.log"

    def create(self) -> None:
        """Make the directories. Raises HomeError where they cannot be made or written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("logs", "run", "run/node", "artifacts", "scratch", "broker"):
                (self.root / name).mkdir(exist_ok=True, mode=0o700)
            probe = self.root / "run" / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise HomeError(
                f"The home directory {self.root} cannot be written ({error.strerror}). "
                "Choose another with --home DIR, or make this one writable for you."
            ) from error

    def read_credentials(self) -> Credentials | None:
        """The credentials of the platform that this home last ran, or None where it never ran."""
        raw = _read_json(self.credentials)
        if raw is None:
            return None
        try:
            return Credentials(control=raw["control"], gateway=raw["gateway"], key=raw["key"])
        except KeyError as error:
            raise HomeError(f"{self.credentials} lacks {error}. Delete it and run 'ebb up' again.") from error

    def write_credentials(self, credentials: Credentials) -> None:
        write_private(self.credentials, json.dumps(credentials, indent=2) + "\n")

    def read_secrets(self) -> Secrets | None:
        raw = _read_json(self.secrets)
        return Secrets(node_key=raw["node_key"]) if raw and "node_key" in raw else None

    def write_secrets(self, secrets: Secrets) -> None:
        write_private(self.secrets, json.dumps(secrets) + "\n")


def _read_json(path: Path) -> dict[str, str] | None:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HomeError(f"{path} cannot be read ({error.strerror}). Run this as the user who ran 'ebb up'.") from error
    try:
        raw: dict[str, str] = json.loads(text)
    except ValueError as error:
        raise HomeError(f"{path} is not valid JSON ({error}). Delete it and run 'ebb up' again.") from error
    return raw


def write_private(path: Path, text: str) -> None:
    """Replace `path` atomically by a file that only its owner can read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
