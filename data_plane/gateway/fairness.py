"""Who was served how much of an endpoint, so that those who share it get alike of it. Pure.

A party is whoever shares: an endpoint belongs to one tenant, so its parties are that tenant's keys. What counts is
tokens, as in the engine (the virtual token counter of Sheng et al., 2024): estimated when a request gets its place,
put right when its answer has ended. One that comes back from idling starts level with the least served of those that
are here, so nobody saves up. Knows nothing of lines, replicas or HTTP.
"""

from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Account:
    """What one party was served (tokens), how many of its requests are in hand, and what of those stands in line."""

    served: int = 0
    requests: int = 0
    waiting: int = 0
    waiting_bytes: int = 0


@dataclass(eq=False, slots=True)
class Claim:
    """What one request may expect: on whose account it runs, and its `rank` (the lower goes first)."""

    account: Account = field(default_factory=Account)
    rank: int = 0
    tokens: int = 1
    """Estimated, until `settle` says what it was."""
    is_charged: bool = False

    def charge(self) -> None:
        """It has a place. One that is tried again elsewhere is charged once."""
        if not self.is_charged:
            self.is_charged = True
            self.account.served += self.tokens

    def settle(self, tokens: int) -> None:
        """Its answer has ended, and took so many."""
        if self.is_charged:
            self.account.served += tokens - self.tokens
        self.tokens = tokens


class Ledger:
    """The accounts of one endpoint's parties: those with requests in hand, and those served more than the least."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def open(self, party: str) -> Account:
        """One more request of `party` is in hand."""
        account = self._accounts.get(party)
        if account is None:
            account = self._accounts[party] = Account()
        if account.requests == 0 and len(self._accounts) > 1:
            account.served = max(account.served, self._least(account.served))
        account.requests += 1
        return account

    def close(self, account: Account) -> None:
        """One of its requests has ended."""
        account.requests -= 1
        if account.requests == 0:
            # what would be lifted when it comes back need not be remembered
            least = self._least(None)
            self._accounts = {
                party: other
                for party, other in self._accounts.items()
                if other.requests or (least is not None and other.served > least)
            }

    @property
    def is_idle(self) -> bool:
        """Whether no request is in hand: then nothing is kept here either."""
        return not self._accounts

    def shares(self) -> dict[str, int]:
        """Tokens served by party; only differences mean anything."""
        return {party: account.served for party, account in self._accounts.items()}

    def _least(self, otherwise: T) -> int | T:
        return min((other.served for other in self._accounts.values() if other.requests), default=otherwise)

    def check(self) -> None:
        """No count is negative, and nobody waits who has no request; AssertionError where it is otherwise."""
        for party, account in self._accounts.items():
            assert 0 <= account.waiting <= account.requests, f"{party} waits with {account.waiting} requests too many"
            assert account.waiting_bytes >= 0, f"{party} has {account.waiting_bytes} bytes in line"
