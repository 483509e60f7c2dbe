"""What `ebb doctor` looks at. Each check returns what it found and, where that is a fault, what to do about it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from control_plane.cli.output import size
from control_plane.embedded import probes
from control_plane.embedded.errors import StartError
from control_plane.embedded.home import Home
from control_plane.embedded.ports import require_free
from control_plane.embedded.postgres import programs
from control_plane.embedded.records import read_record

Verdict = Literal["ok", "warning", "fault"]

_TORCH_PROBE = """
import torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(torch.__version__)
print(", ".join(names) or "no GPU: models run on the CPU")
"""
_USUAL_PORTS = (7070, 7071)
_LITTLE_MEMORY = 2 << 30
_LITTLE_DISK = 3 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` is empty where nothing needs to be done."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def run_checks(home: Home, ports: Sequence[tuple[int, str]]) -> list[Finding]:
    """All findings; `ports` are (number, the flag that changes it)."""
    checks: list[Callable[[], Finding | list[Finding]]] = [
        check_python,
        check_torch,
        check_memory,
        lambda: check_home(home.root),
        lambda: check_disk(home.root),
        check_postgres,
        check_broker,
        lambda: check_ports(home, ports),
        lambda: check_processes(home),
    ]
    findings: list[Finding] = []
    for check in checks:
        found = check()
        findings += found if isinstance(found, list) else [found]
    return findings


def check_python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", "ok", f"{version} ({sys.executable})")


def check_torch() -> list[Finding]:
    """In a process of its own: torch takes a second and hundreds of megabytes to import."""
    result = subprocess.run([sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return [Finding("torch", "fault", reason, "Run 'make install' again; its output tells what is missing.")]
    version, devices = result.stdout.strip().splitlines()[:2]
    cores = len(psutil.Process().cpu_affinity() or []) if sys.platform == "linux" else os.cpu_count()
    return [Finding("torch", "ok", version), Finding("devices", "ok", f"{cores} CPU cores; {devices}")]


def check_memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{size(memory.available)} free of {size(memory.total)}"
    if memory.available < _LITTLE_MEMORY:
        return Finding("memory", "warning", found, "Small models need about 2 GiB free: stop something, or add memory.")
    return Finding("memory", "ok", found)


def check_home(root: Path) -> Finding:
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    try:
        # Tried, not asked: root may write by the permissions where a read-only or virtual filesystem lets nobody.
        tempfile.TemporaryDirectory(prefix=".ebb-doctor-", dir=existing).cleanup()
    except OSError as error:
        found = f"{root} cannot be written ({error.strerror or error})"
        return Finding("home", "fault", found, "Choose another with --home DIR, or set EBB_HOME.")
    return Finding("home", "ok", str(root) if existing == root else f"{root} (not made yet)")


def check_disk(root: Path) -> Finding:
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < _LITTLE_DISK:
        remedy = (
            "Artifacts are as large as their models: free some space, or choose a home on another disk with --home."
        )
        return Finding("disk", "warning", f"{size(free)} free at {existing}", remedy)
    return Finding("disk", "ok", f"{size(free)} free at {existing}")


def check_postgres() -> Finding:
    url = os.environ.get("EBB_DATABASE_URL")
    if url:
        return _check_database(url)
    try:
        program = programs() / "postgres"
        result = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    except StartError as error:
        return Finding("postgres", "fault", "the embedded PostgreSQL is missing", str(error))
    if result.returncode != 0:
        remedy = "Set EBB_DATABASE_URL to a PostgreSQL server of yours."
        return Finding("postgres", "fault", result.stderr.strip() or "it does not run", remedy)
    return Finding("postgres", "ok", f"embedded, {result.stdout.strip()}")


def _check_database(url: str) -> Finding:
    import psycopg  # only where there is a server to ask

    where = urlsplit(url).hostname or "a local socket"
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            version = connection.info.server_version // 10000
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "Start that server or correct EBB_DATABASE_URL; unset it to use the embedded PostgreSQL."
        return Finding("postgres", "fault", reason, remedy)
    if version < 15:
        return Finding("postgres", "fault", f"PostgreSQL {version} at {where}", "Ebb needs PostgreSQL 15 or newer.")
    return Finding("postgres", "ok", f"PostgreSQL {version} at {where} (EBB_DATABASE_URL)")


def check_broker() -> Finding:
    url = os.environ.get("EBB_BROKER_URL")
    if not url or url.startswith("filesystem:"):
        return Finding("broker", "ok", "embedded, in the home directory")
    parts = urlsplit(url)
    default = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}.get(parts.scheme)
    if default is None:
        remedy = "Set EBB_BROKER_URL to amqp://… or redis://…, or unset it."
        return Finding("broker", "fault", f"'{parts.scheme}' is no broker that Ebb uses", remedy)
    where = f"{parts.hostname or 'localhost'}:{parts.port or default}"
    try:
        socket.create_connection((parts.hostname or "localhost", parts.port or default), timeout=3).close()
    except OSError as error:
        remedy = "Start it or correct EBB_BROKER_URL; unset it to use the embedded broker."
        return Finding("broker", "fault", f"{parts.scheme} at {where} cannot be reached ({error})", remedy)
    return Finding("broker", "ok", f"{parts.scheme} at {where} (EBB_BROKER_URL)")


def ports_in_use_by(home: Home) -> tuple[int, int]:
    """The ports of the platform that runs in `home`; the usual ones where none does."""
    record = read_record(home.supervisor)
    if record is None or not record.supervisor.is_alive():
        return _USUAL_PORTS
    return urlsplit(record.control).port or _USUAL_PORTS[0], urlsplit(record.gateway).port or _USUAL_PORTS[1]


def check_ports(home: Home, ports: Sequence[tuple[int, str]]) -> list[Finding]:
    record = read_record(home.supervisor)
    own = {urlsplit(record.control).port, urlsplit(record.gateway).port} if record else set[int | None]()
    findings: list[Finding] = []
    for port, flag in ports:
        if record and record.supervisor.is_alive() and port in own:
            findings.append(Finding(f"port {port}", "ok", "used by this platform"))
            continue
        try:
            require_free("127.0.0.1", port, flag)
            findings.append(Finding(f"port {port}", "ok", "free"))
        except StartError as error:
            findings.append(Finding(f"port {port}", "fault", "in use", str(error)))
    return findings


def check_processes(home: Home) -> list[Finding]:
    record = read_record(home.supervisor)
    if record is None:
        return [Finding("platform", "ok", "not running; 'ebb up' starts it")]
    if not record.supervisor.is_alive():
        left = [child.name for child in record.children if child.is_alive()]
        found = f"the supervisor is gone; left over: {', '.join(left) or 'nothing'}"
        return [Finding("platform", "fault", found, "Run 'ebb down' to clean up, then 'ebb up'.")]
    findings = [Finding("platform", "ok", f"running (pid {record.supervisor.pid})")]
    for name, url in (("control", record.control), ("gateway", record.gateway)):
        if not probes.is_ready(url):
            remedy = f"It is starting, or it fails: see {home.log(name)}."
            findings.append(Finding(name, "warning", f"{url} is not ready", remedy))
    return findings
