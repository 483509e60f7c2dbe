"""What each key may take: requests at once, requests a minute, tokens a minute. Pure: time is an argument.

Buckets are this gateway's own and are known by key id; where there are several gateways, each allows its part. Tokens
are taken by an estimate when a request begins, and put right when its answer has ended. Knows nothing of HTTP but the
names of the headers that tell clients where they stand (OpenAI's).
"""

import math
from dataclasses import dataclass, field

from data_plane.wire.errors import ApiError
from data_plane.wire.keys import NO_LIMITS, KeyLimits, KeyRecord

MINUTE_S = 60.0


class Bucket:
    """`most` a minute: full at first, filled again evenly. It may be overdrawn, by what was underestimated."""

    def __init__(self, most: float, now: float) -> None:
        self.most = most
        self._level = most
        self._at = now

    def level(self, now: float) -> float:
        """What may be taken now."""
        return min(self.most, self._level + max(0.0, now - self._at) * self.most / MINUTE_S)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, or give it back where it is negative."""
        self._level = min(self.most, self.level(now) - amount)
        self._at = max(self._at, now)

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; more than a whole bucket needs no more than a full one."""
        lacking = min(amount, self.most) - self.level(now)
        # what is lacking by rounding alone is there
        return 0.0 if lacking <= 1e-6 * self.most else lacking * MINUTE_S / self.most

    def resize(self, most: float, now: float) -> None:
        """Another limit from now on: what was taken stays taken."""
        taken = self.most - self.level(now)
        self.most = most
        self._level = most - taken
        self._at = now


@dataclass
class _Key:
    """The books of one limited key. A limit that is not set has no bucket."""

    limits: KeyLimits
    running: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None


@dataclass
class Permit:
    """One request that was let in; `end` it with the tokens it took in the end."""

    key: "_Key | None" = None
    taken: int = 0
    is_open: bool = field(default=True, repr=False)

    def end(self, tokens: int, now: float) -> None:
        """Its answer has ended. Ending twice is the same as once."""
        if not self.is_open or self.key is None:
            return
        self.is_open = False
        self.key.running -= 1
        if self.key.tokens is not None:
            self.key.tokens.take(min(tokens, MOST_TOKENS) - self.taken, now)


MOST_TOKENS = 1 << 31
_FREE = Permit()


class Limiter:
    """The books of all limited keys that were seen. Keys without limits cost nothing here."""

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}
        self._gateways = 1

    def update(self, records: tuple[KeyRecord, ...], gateways: int) -> None:
        """Forget keys that are gone. Changed limits hold from each key's next request."""
        kept = {record.id for record in records}
        self._keys = {id: key for id, key in self._keys.items() if id in kept or key.running}
        self._gateways = max(1, gateways)

    def admit(self, record: KeyRecord, tokens: int, now: float) -> Permit:
        """Let a request in that will take about `tokens`. Raises ApiError 429 with `retry-after`, and takes nothing."""
        if record.limits == NO_LIMITS:
            return _FREE
        key = self._book(record, now)
        limits = record.limits
        most = limits.max_concurrency
        if most is not None and key.running >= math.ceil(most / self._gateways):
            raise self._refusal(key, "max_concurrency", f"{most} requests at once", 1.0, now)
        for name, bucket, amount, unit in (
            ("requests_per_minute", key.requests, 1, "requests"),
            ("tokens_per_minute", key.tokens, tokens, "tokens"),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(amount, now)) > 0:
                words = f"{round(bucket.most * self._gateways)} {unit} a minute"
                raise self._refusal(key, name, words, wait_s, now)
        key.running += 1
        if key.requests is not None:
            key.requests.take(1, now)
        if key.tokens is not None:
            tokens = min(tokens, math.floor(key.tokens.most))
            key.tokens.take(tokens, now)
        return Permit(key, tokens)

    def headers(self, record: KeyRecord, now: float) -> dict[str, str]:
        """`x-ratelimit-*` of what this key has left; empty where it is not limited by the minute."""
        key = self._keys.get(record.id)
        return {} if key is None else self._headers(key, now)

    def check(self) -> None:
        """No key has fewer than no requests running; AssertionError where one does."""
        for id, key in self._keys.items():
            assert key.running >= 0, f"key {id} has {key.running} requests running"

    @property
    def running(self) -> int:
        """Requests of limited keys that were let in and have not ended."""
        return sum(key.running for key in self._keys.values())

    def _book(self, record: KeyRecord, now: float) -> _Key:
        key = self._keys.setdefault(record.id, _Key(record.limits))
        key.limits = record.limits
        key.requests = self._bucket(key.requests, record.limits.requests_per_minute, now)
        key.tokens = self._bucket(key.tokens, record.limits.tokens_per_minute, now)
        return key

    def _bucket(self, bucket: Bucket | None, limit: int | None, now: float) -> Bucket | None:
        if limit is None:
            return None
        most = max(1.0, limit / self._gateways)
        if bucket is None:
            return Bucket(most, now)
        if bucket.most != most:
            bucket.resize(most, now)
        return bucket

    def _refusal(self, key: _Key, name: str, words: str, wait_s: float, now: float) -> ApiError:
        return ApiError(
            429,
            f"This key may have {words}, and has them. Try again in {wait_s:.1f} s.",
            type="rate_limit_error",
            param=name,
            code="rate_limit_exceeded",
            headers={"retry-after": str(max(1, math.ceil(wait_s))), **self._headers(key, now)},
        )

    def _headers(self, key: _Key, now: float) -> dict[str, str]:
        told: dict[str, str] = {}
        limits = key.limits
        for name, bucket, limit in (
            ("requests", key.requests, limits.requests_per_minute),
            ("tokens", key.tokens, limits.tokens_per_minute),
        ):
            if bucket is not None and limit is not None:
                told[f"x-ratelimit-limit-{name}"] = str(limit)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level(now) * self._gateways)))
                told[f"x-ratelimit-reset-{name}"] = duration(bucket.wait_s(bucket.most, now))
        return told


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
