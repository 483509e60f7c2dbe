"""Runs the program that turns a source into an artifact, as a child, and reads its lines. The child and all it starts
end with this call, whatever ends it. Knows nothing of jobs and tables."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from control_plane.catalog.quantization import AUTO, PLAIN, RUNS_ON
from data_plane.wire.jobs import ImportFailure, ImportLine, ImportResult, Progress

MAX_LINE_BYTES = 8 * 2**20
STDERR_TAIL = 4096
PR_SET_PDEATHSIG = 1
_LIBC: ctypes.CDLL | None = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ImportFailed(Exception):
    """The import ended without a result. `fatal`: trying again will not help."""

    def __init__(self, message: str, *, fatal: bool) -> None:
        super().__init__(message)
        self.fatal = fatal


async def run_import(
    command: Sequence[str],
    source: str,
    artifacts: Path,
    scratch: Path,
    on_progress: Callable[[Progress], Awaitable[None]],
    *,
    quantization: str = PLAIN,
    force: bool = False,
) -> ImportResult:
    """Runs the importer to its end; cancelling this kills it. `scratch` is made and removed. `quantization` by its
    stored name, or `auto`; `force`: also where the quality gate refuses it. Raises ImportFailed."""
    artifacts.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    arguments = ["--source", source, "--artifacts", str(artifacts), "--scratch", str(scratch)]
    arguments += ["--quantization", quantization] if quantization != PLAIN else []
    arguments += ["--force"] if force else []
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            env=_child_environment(),
        )
        tail = asyncio.create_task(_tail(child.stderr))
        try:
            result = await _read(child.stdout, on_progress)
            status = await child.wait()
            if result is not None:
                return _checked(result, quantization)
            raise ImportFailed(_unexplained(status, await tail), fatal=False)
        finally:
            _kill_group(child.pid)
            tail.cancel()
            await child.wait()
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


async def _read(
    lines: asyncio.StreamReader | None, on_progress: Callable[[Progress], Awaitable[None]]
) -> ImportResult | None:
    assert lines is not None
    result: ImportResult | None = None
    while True:
        try:
            line = await lines.readline()
        except ValueError as error:
            raise ImportFailed(
                f"The importer printed a line of more than {MAX_LINE_BYTES} bytes.", fatal=True
            ) from error
        if not line:
            return result
        if not line.strip():
            continue
        try:
            told: Progress | ImportFailure | ImportResult = msgspec.json.decode(line, type=ImportLine)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ImportFailed(
                f"The importer printed a line that is not of its protocol: {error}.", fatal=True
            ) from error
        match told:
            case Progress():
                await on_progress(told)
            case ImportFailure():
                raise ImportFailed(told.message, fatal=told.fatal)
            case ImportResult():
                result = told


def _checked(result: ImportResult, asked: str) -> ImportResult:
    """What was asked for, or what `auto` found; anything else would be kept, and served, under a wrong name."""
    if result.quantization not in (RUNS_ON if asked == AUTO else (asked,)):
        raise ImportFailed(
            f"The importer was asked for the quantization '{asked}' and made '{result.quantization[:40]}'. Install Ebb "
            "anew: its parts are not of one version.",
            fatal=True,
        )
    return result


async def _tail(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    kept = b""
    while chunk := await stream.read(STDERR_TAIL):
        kept = (kept + chunk)[-STDERR_TAIL:]
    return kept.decode(errors="replace")


def _unexplained(status: int, stderr: str) -> str:
    how = f"was ended by signal {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"The importer {how} without a result." + (f" Its last words: {lines[-1][:300]}" if lines else "")


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
        os.killpg(pid, signal.SIGKILL)


def _die_with_parent() -> None:
    """Runs in the child: a worker killed with -9 takes its importer along, so two never work on one job."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _child_environment() -> dict[str, str]:
    """Without our secrets: an importer opens files that strangers made."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EBB_")}
