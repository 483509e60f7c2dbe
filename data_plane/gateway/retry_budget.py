"""How many requests may be sent once more, by endpoint: a fleet in trouble must not drown in repetitions.

The rule is 20 % of recent requests. A replica that dies pays for those it had, or half the streams of a fleet of two
would be lost with one of them; but only while at most half of an endpoint's replicas die within a minute: replicas
that die one after the other are more likely killed by what is sent to them. Pure; it is told the time.
"""

from dataclasses import dataclass, field

SHARE = 0.2
FLOOR = 5.0
"""An endpoint that was quiet may repeat so many, and as many again a minute later."""
MOST = 100.0
WINDOW_S = 60.0


@dataclass
class _Account:
    balance: float = FLOOR
    filled_at: float = 0.0
    granted: int = 0
    deaths: dict[str, float] = field(default_factory=dict[str, float])


class RetryBudget:
    """One account an endpoint."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def note_request(self, endpoint_id: str, now: float) -> None:
        """A request came: a fifth of one more may be repeated."""
        account = self._account(endpoint_id, now)
        account.balance = max(account.balance, min(MOST, account.balance + SHARE))

    def note_death(self, endpoint_id: str, replica: str, num_requests: int, num_replicas: int, now: float) -> None:
        """A replica was lost, with so many requests; the endpoint had `num_replicas`, that one among them.

        Each of its requests may say so: the first counts.
        """
        account = self._account(endpoint_id, now)
        if replica in account.deaths:
            return
        if len(account.deaths) < max(1, num_replicas // 2):
            account.granted += num_requests
        account.deaths[replica] = now

    def spend(self, endpoint_id: str, now: float) -> bool:
        """Whether one request may be repeated; it counts as done."""
        account = self._account(endpoint_id, now)
        if account.granted:
            account.granted -= 1
            return True
        if account.balance < 1:
            return False
        account.balance -= 1
        return True

    def forget_all_but(self, endpoint_ids: set[str]) -> None:
        """Drop the accounts of endpoints that are gone."""
        for gone in self._accounts.keys() - endpoint_ids:
            del self._accounts[gone]

    def _account(self, endpoint_id: str, now: float) -> _Account:
        account = self._accounts.get(endpoint_id)
        if account is None:
            account = self._accounts[endpoint_id] = _Account(filled_at=now)
        if account.balance < FLOOR:
            account.balance = min(FLOOR, account.balance + (now - account.filled_at) * FLOOR / WINDOW_S)
        account.filled_at = now
        if account.deaths:
            account.deaths = {name: at for name, at in account.deaths.items() if now - at <= WINDOW_S}
        if not account.deaths:
            account.granted = 0
        return account
