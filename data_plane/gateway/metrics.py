"""The gateway's Prometheus metrics, in a registry of their own. Labels are bounded: only names of known endpoints.

Gauges are read off the live books when they are scraped, so they cannot drift from them.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SECONDS = tuple(0.01 * 2**power for power in range(16))


@dataclass(frozen=True)
class EndpointGauges:
    """One endpoint's books at the time of a scrape."""

    endpoint: str
    inflight: int
    queue_depth: int
    queue_bytes: int
    replicas: int


class _Books(Collector):
    def __init__(self, read: Callable[[], list[EndpointGauges]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        rows = self._read()
        for name, words, values in (
            ("inflight", "Requests on replicas.", [row.inflight for row in rows]),
            ("queue_depth", "Requests held for a replica.", [row.queue_depth for row in rows]),
            ("queue_bytes", "Bytes of held requests.", [row.queue_bytes for row in rows]),
            ("replicas", "Ready replicas in the routes.", [row.replicas for row in rows]),
        ):
            family = GaugeMetricFamily(f"ebb_gateway_{name}", words, labels=["endpoint"])
            for row, value in zip(rows, values, strict=True):
                family.add_metric([row.endpoint], value)
            yield family


class Count(Collector):
    """A counter of this process alone: one loop counts, so it needs no lock, which is most of what counting costs."""

    def __init__(self, name: str, words: str, labels: Sequence[str]) -> None:
        self._name, self._words, self._labels = name, words, labels
        self._counts: dict[tuple[str, ...], float] = {}

    def add(self, *labels: str, amount: float = 1) -> None:
        """So much more of these labels, given in their order."""
        self._counts[labels] = self._counts.get(labels, 0) + amount

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What a scrape sees."""
        family = CounterMetricFamily(self._name, self._words, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family


class Times(Collector):
    """A histogram of seconds by endpoint, of this process alone."""

    def __init__(self, name: str, words: str) -> None:
        self._name, self._words = name, words
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, endpoint: str, seconds: float) -> None:
        """One more."""
        buckets = self._buckets.get(endpoint)
        if buckets is None:
            buckets = self._buckets[endpoint] = [0] * (len(SECONDS) + 1)
            self._sums[endpoint] = 0.0
        buckets[bisect_left(SECONDS, seconds)] += 1
        self._sums[endpoint] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape sees."""
        family = HistogramMetricFamily(self._name, self._words, labels=["endpoint"])
        bounds = [*(floatToGoString(bound) for bound in SECONDS), "+Inf"]
        for endpoint, buckets in self._buckets.items():
            # a bucket also counts all that is below it
            told = list(zip(bounds, accumulate(buckets), strict=True))
            family.add_metric([endpoint], told, self._sums[endpoint])
        yield family


class Metrics:
    """All metrics of one gateway."""

    def __init__(self, books: Callable[[], list[EndpointGauges]]) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_Books(books))
        self.requests = _counter(registry, "requests", "Requests answered.", "model", "endpoint", "code", "outcome")
        self.request_seconds = _histogram(registry, "request_seconds", "From arrival to the answer's end.")
        self.first_byte_seconds = _histogram(registry, "first_byte_seconds", "From arrival to the runner's first byte.")
        self.queue_wait_seconds = _histogram(registry, "queue_wait_seconds", "How long held requests were held.")
        self.cold_start_seconds = _histogram(registry, "cold_start_seconds", "Held requests that were then answered.")
        self.cold_starts = _counter(registry, "cold_starts", "Requests held for a replica.", "endpoint", "result")
        self.rejections = _counter(registry, "rejections", "Requests refused here.", "reason")
        self.cancellations = _counter(registry, "cancellations", "Requests whose client went away.", "type")
        self.retries = _counter(registry, "upstream_retries", "Requests tried on another replica.", "endpoint")
        self.ejections = _counter(registry, "ejections", "Replicas found gone or leaving.", "endpoint", "reason")
        self.routes = _counter(registry, "routes", "Requests sent to a replica.", "endpoint", "reason")
        self.prompt_tokens = _counter(registry, "prompt_tokens", "Of requests sent, about.", "endpoint")
        self.matched_tokens = _counter(registry, "matched_tokens", "Of these, taken to be cached there.", "endpoint")
        self.interrupted = _counter(registry, "stream_interrupted", "Streams that lost their replica.", "endpoint")
        self.resumed = _counter(registry, "streams_resumed", "Streams that another replica went on with.", "endpoint")
        self.poisonous = _counter(registry, "poisonous", "Requests that two replicas died of.", "endpoint")
        self.usage_dropped = _counter(registry, "usage_dropped", "Requests whose usage was not kept.")
        self.usage_dropped.add(amount=0)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self._registry)


def _counter(registry: CollectorRegistry, name: str, words: str, *labels: str) -> Count:
    count = Count(f"ebb_gateway_{name}", words, labels)
    registry.register(count)
    return count


def _histogram(registry: CollectorRegistry, name: str, words: str) -> Times:
    times = Times(f"ebb_gateway_{name}", words)
    registry.register(times)
    return times
