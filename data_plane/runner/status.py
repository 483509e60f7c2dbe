"""The file by which a runner tells its agent what it is doing; replaced whole at each change. Knows nothing of why."""

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import structlog

from data_plane.wire.fleet import RunnerSpec, RunnerStatus

log = structlog.get_logger()


class StatusFile:
    """Holds the status as last written. `started_at` is Unix seconds."""

    def __init__(self, spec: RunnerSpec, started_at: float) -> None:
        self._path = Path(spec.status_path)
        self.now = RunnerStatus(
            replica_id=spec.replica_id,
            pid=os.getpid(),
            phase="starting",
            started_at=started_at,
            slots=spec.spec.max_num_seqs,
        )

    def change(self, **changes: Any) -> None:
        """Writes the status with these fields changed. The names are RunnerStatus'; others raise TypeError."""
        self.now = msgspec.structs.replace(self.now, **changes)
        scratch = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        try:
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(self.now))
            scratch.replace(self._path)
        except OSError as error:
            # a full disk must not end a runner that serves; the agent sees the process itself anyway
            log.error("the status cannot be written", path=str(self._path), error=str(error))
        log.info("phase", phase=self.now.phase, failure=self.now.failure and self.now.failure.message)


def process_started_at() -> float:
    """When this process was started, in Unix seconds, to a clock tick (10 ms).

    psutil adds the ticks to a boot time of whole seconds, which shifted the span `import` by up to a second.
    """
    try:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return psutil.Process().create_time()  # no /proc: not Linux
    return time.time() - (uptime_s - int(after_name[19]) / os.sysconf("SC_CLK_TCK"))
