"""Which replicas are left alone because requests were lost with them, and when each is to be asked whether it is back.

Pure: it is told the time. Knows nothing of how a replica is asked.
"""

from dataclasses import dataclass

FIRST_S = 0.25
MOST_S = 2.0
"""Between two questions to a replica that is away: twice as long each time, up to this."""
AGAIN = 4.0
LONGEST_S = 30.0
"""One that says it is ready and loses a request again stays away so many times longer than before, up to this."""


@dataclass
class _Away:
    since: float
    ask_at: float
    pause_s: float
    is_out: bool = True


class Health:
    """The replicas that failed lately, by any name that stands for one launch. One that answers is as good as new."""

    def __init__(self) -> None:
        self._away: dict[str, _Away] = {}

    def __bool__(self) -> bool:
        return bool(self._away)

    def is_out(self, replica_id: str) -> bool:
        """Whether it is left alone now."""
        away = self._away.get(replica_id)
        return away is not None and away.is_out

    def eject(self, replica_id: str, now: float) -> bool:
        """It lost a request. False where it is out already, and somebody asks it."""
        away = self._away.get(replica_id)
        if away is None:
            self._away[replica_id] = _Away(now, now + FIRST_S, FIRST_S)
            return True
        if away.is_out:
            return False
        away.pause_s = min(LONGEST_S, away.pause_s * AGAIN)
        away.since, away.ask_at, away.is_out = now, now + away.pause_s, True
        return True

    def ask_at(self, replica_id: str) -> float:
        """When it is to be asked next."""
        return self._away[replica_id].ask_at

    def still_away(self, replica_id: str, now: float) -> None:
        """It was asked and is not back."""
        away = self._away[replica_id]
        away.ask_at = now + min(MOST_S, max(FIRST_S, now - away.since))

    def admit(self, replica_id: str) -> None:
        """It says that it is back. Until it has answered a request its past is remembered."""
        away = self._away.get(replica_id)
        if away is not None:
            away.is_out = False

    def answered(self, replica_id: str) -> None:
        """It answered a request."""
        if not self.is_out(replica_id):
            self._away.pop(replica_id, None)

    def forget(self, replica_id: str) -> None:
        """It has left the routes."""
        self._away.pop(replica_id, None)
