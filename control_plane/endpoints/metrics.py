"""What the fleet's rows and loops tell Prometheus. Knows nothing of how they are scraped."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

FLEET = CollectorRegistry()

WAKES = Counter("ebb_wakes", "Wakes of endpoints that had no replica", ["source"], registry=FLEET)
COLD_STARTS = Counter("ebb_cold_starts", "Replicas that became ready", registry=FLEET)
FAILURES = Counter(
    "ebb_replica_failures", "Replicas that failed: while starting, or after they were ready", ["when"], registry=FLEET
)
CIRCUITS_OPENED = Counter("ebb_endpoint_failures", "Endpoints that were declared failed", registry=FLEET)
COLD_START_SECONDS = Histogram(
    "ebb_cold_start_seconds",
    "From the decision to start a replica to its being ready",
    buckets=(0.25, 0.5, 1, 2, 3, 5, 8, 13, 30, 60, 120, 300),
    registry=FLEET,
)
START_SECONDS = Histogram(
    "ebb_start_phase_seconds",
    "The phases of starts that succeeded",
    ["phase"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120, 600),
    registry=FLEET,
)
ENDPOINTS = Gauge("ebb_endpoints", "Endpoints by state", ["state"], registry=FLEET)
REPLICAS = Gauge("ebb_replicas", "Replicas that have not ended, by status", ["status"], registry=FLEET)
DESIRED = Gauge("ebb_desired_replicas", "Replicas wanted", ["endpoint"], registry=FLEET)
LOOP_SECONDS = Histogram(
    "ebb_reconcile_seconds",
    "One round of a loop",
    ["loop"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
    registry=FLEET,
)
