"""What the control plane measures of itself, as Prometheus text. Labels are route templates, never what callers sent.
Knows nothing of models and endpoints."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from control_plane.db.loop import Leader

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """One registry per application, so that two of them in one process do not share their counts."""

    def __init__(self, leader: Leader) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "ebb_control_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._latency = Histogram(
            "ebb_control_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        leads = Gauge("ebb_control_leader", "1 while this process runs the loops.", registry=self.registry)
        leads.set_function(lambda: 0.0 if leader.epoch is None else 1.0)
        epoch = Gauge("ebb_control_epoch", "The lease's epoch while this process leads.", registry=self.registry)
        epoch.set_function(lambda: float(leader.epoch or 0))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one answered request; status 499: the caller went away before the answer began."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
