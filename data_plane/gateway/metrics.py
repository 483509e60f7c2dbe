"""The gateway's Prometheus metrics, in a registry of their own. Labels are bounded: only names of known endpoints.

Gauges are read off the live books when they are scraped, so they cannot drift from them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

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


_M = TypeVar("_M", Counter, Histogram)


class Metrics:
    """All metrics of one gateway."""

    def __init__(self, books: Callable[[], list[EndpointGauges]]) -> None:
        self._registry = registry = CollectorRegistry()
        self._children: dict[tuple[Any, ...], Any] = {}
        registry.register(_Books(books))
        self.requests = Counter(
            "ebb_gateway_requests", "Requests answered.", ["model", "endpoint", "code", "outcome"], registry=registry
        )
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

    def of(self, metric: _M, *labels: str) -> _M:
        """The metric of these labels, remembered: looking it up takes a lock, and longer than counting does."""
        key = (metric, *labels)
        found: _M | None = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return found

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self._registry)


def _counter(registry: CollectorRegistry, name: str, words: str, *labels: str) -> Counter:
    return Counter(f"ebb_gateway_{name}", words, labels, registry=registry)


def _histogram(registry: CollectorRegistry, name: str, words: str) -> Histogram:
    return Histogram(f"ebb_gateway_{name}", words, ["endpoint"], buckets=SECONDS, registry=registry)
