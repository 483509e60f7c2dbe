"""What the times of a load test's requests come to. Arithmetic only: knows nothing of servers."""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_ONLY_FOR_PEOPLE = ("prompt_tokens", "first_error")


@dataclass(frozen=True)
class Case:
    """One concurrency's figures: times in ms as the client saw them, rates in tokens a second.

    `decode_tps` is of the decode phase: the moments in which every stream is between its first and its last token, so
    that no prompt is waited for. Where there are none (as with answers of one token) it is `total_tps`: all tokens over
    the time from the first request to the last token. `http_share` and `host_share` are what speaking HTTP (CPU time)
    and the engine's own Python took, as shares of the time of the engine's steps; None where the server does not tell.
    """

    concurrency: int
    decode_tps: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    requests: int
    errors: int
    total_tps: float = 0.0
    http_share: float | None = None
    host_share: float | None = None
    prompt_tokens: float = 0.0
    first_error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The figures without what is only for people, and without what is not known."""
        return {
            name: value for name, value in asdict(self).items() if name not in _ONLY_FOR_PEOPLE and value is not None
        }


@dataclass
class Sample:
    """One request: when it was sent, when each piece of text came, and what the server counted."""

    sent: float
    arrivals: list[float] = field(default_factory=list[float])
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None

    @property
    def ended(self) -> float:
        return self.arrivals[-1] if self.arrivals else self.sent

    @property
    def tokens(self) -> int:
        """As the server counted; a piece of text is about a token where it did not."""
        return self.new_tokens or len(self.arrivals)


def summarise(concurrency: int, samples: Sequence[Sample]) -> Case:
    """The figures of a case. Failed requests count as errors and in nothing else."""
    good = [sample for sample in samples if sample.error is None and sample.arrivals]
    errors = [sample.error for sample in samples if sample.error is not None]
    waits = sorted(1000 * (sample.arrivals[0] - sample.sent) for sample in good)
    gaps = sorted(1000 * (b - a) for sample in good for a, b in itertools.pairwise(sample.arrivals))
    tokens = sum(sample.tokens for sample in good)
    span_s = max((s.ended for s in good), default=0.0) - min((s.sent for s in good), default=0.0)
    total_tps = round(tokens / span_s, 2) if span_s > 0 else 0.0
    return Case(
        concurrency=concurrency,
        decode_tps=_decode_rate(min(concurrency, len(samples)), good) or total_tps,
        ttft_p50_ms=percentile(waits, 0.50),
        ttft_p99_ms=percentile(waits, 0.99),
        itl_p50_ms=percentile(gaps, 0.50),
        itl_p99_ms=percentile(gaps, 0.99),
        requests=len(samples),
        errors=len(errors),
        total_tps=total_tps,
        prompt_tokens=sum(sample.prompt_tokens for sample in good) / len(good) if good else 0.0,
        first_error=errors[0] if errors else None,
    )


def _decode_rate(streams: int, samples: Sequence[Sample]) -> float:
    """Tokens a second while all `streams` decode; 0 where they never do."""
    spans = _full_spans(streams, samples)
    took_s = sum(end - start for start, end in spans)
    tokens = 0.0
    for sample in samples:
        times = sample.arrivals
        came = sum(bisect_right(times, end) - bisect_right(times, start) for start, end in spans)
        # servers may send several tokens as one piece of text
        tokens += came * sample.tokens / len(times)
    return round(tokens / took_s, 2) if took_s > 0 else 0.0


def _full_spans(streams: int, samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """When `streams` samples at once are between their first and last token."""
    changes = sorted(change for sample in samples for change in ((sample.arrivals[0], 1), (sample.arrivals[-1], -1)))
    spans: list[tuple[float, float]] = []
    active, since = 0, 0.0
    for at, change in changes:
        if active == streams and at > since:
            spans.append((since, at))
        active, since = active + change, at
    return spans


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of an ascending list lies, between neighbours by proportion; 0 for an empty one."""
    if not ordered:
        return 0.0
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return round(ordered[low] + (ordered[high] - ordered[low]) * (position - low), 3)
