"""The last requests and where they went, for people who ask why. Bounded; knows nothing of prompts or answers."""

from collections import deque
from itertools import islice

import msgspec

MOST = 2_000


class RequestRecord(msgspec.Struct, frozen=True):
    """One ended request. `at` is Unix seconds of its arrival; `ttft_s` to the replica's first byte, None without one.

    `matched_tokens` of about `prompt_tokens` were taken to be cached on `replica`; `reason` is why it was chosen.
    """

    at: float
    request_id: str
    endpoint: str
    replica: str
    reason: str
    matched_tokens: int
    prompt_tokens: int
    ttft_s: float | None
    status: int
    outcome: str


class RecentRequests:
    """The last `most` records of all tenants."""

    def __init__(self, most: int = MOST) -> None:
        self._records: deque[tuple[str, RequestRecord]] = deque(maxlen=most)

    def add(self, tenant: str, record: RequestRecord) -> None:
        """One more; the oldest goes."""
        self._records.append((tenant, record))

    def of(self, tenant: str, endpoint: str | None, limit: int) -> list[RequestRecord]:
        """A tenant's latest records, the newest last; of one endpoint, if it is named."""
        found = (
            record
            for owner, record in reversed(self._records)
            if owner == tenant and endpoint in (None, record.endpoint)
        )
        return list(islice(found, limit))[::-1]
