"""What the end of a runner means. Pure: decided by its last status, its exit code and what had been asked of it."""

import signal

from data_plane.node.records import Asked
from data_plane.wire.fleet import RunnerStatus, StartFailure

LOG_LINES = 5
LOG_CHARACTERS = 800


def judge(
    *,
    asked: Asked,
    was_ready: bool,
    status: RunnerStatus | None,
    code: int | None,
    log_tail: str,
    shortage: str = "",
) -> StartFailure | None:
    """None: it stopped as it should. `code` is negative for a signal, None where nobody could learn it. `shortage`: how
    the memory stood, where the kernel killed something for want of it just now."""
    if asked != "run":
        return None  # also of one that is parked: nobody waits for it
    if status is not None and status.failure is not None:
        return status.failure
    if code == -signal.SIGKILL and shortage:
        when = "while it served" if was_ready else "before it was ready"
        message = f"The kernel killed the runner {when}: there is not enough memory. {shortage}"
        return StartFailure(message=message, fatal=False)
    if was_ready:
        told = status is not None and status.phase in ("draining", "stopped")
        if code == 0 or (code is None and told):
            return None
        return StartFailure(message=f"The runner, once ready, {ended_by(code)}.{quote(log_tail)}", fatal=False)
    return StartFailure(message=f"The runner {ended_by(code)} before it was ready.{quote(log_tail)}", fatal=False)


def ended_by(code: int | None) -> str:
    """`ended by signal 9 (…)`, `ended with exit code 1`, `ended`."""
    if code is None:
        return "ended (how is not known: the agent that started it had been replaced)"
    if code >= 0:
        return f"ended with exit code {code}"
    number = -code
    if number == signal.SIGKILL:
        return "ended by signal 9 (perhaps the machine ran out of memory)"
    return f"ended by signal {number}"


def quote(log_tail: str) -> str:
    """The last lines of a log as a part of a sentence, without control characters."""
    lines = [line.strip() for line in log_tail.splitlines() if line.strip()]
    text = " | ".join(lines[-LOG_LINES:])
    text = "".join(character if character.isprintable() else " " for character in text)
    return f" Its log ends with: {text[-LOG_CHARACTERS:]}" if text else ""
