"""What the database's keepers tell Prometheus. Knows nothing of how they are scraped."""

from prometheus_client import CollectorRegistry, Counter, Gauge

STORE = CollectorRegistry()

STALE = Counter(
    "ebb_stale_refused",
    "Writes, reports and messages that came too late and changed nothing: of a lease, a node, a report, a job",
    ["what"],
    registry=STORE,
)
FAILOVERS = Counter(
    "ebb_database_failovers", "Times that another PostgreSQL server was found to have taken over", registry=STORE
)
DIVERGED = Counter(
    "ebb_database_diverged",
    "Things that nodes knew and the database had forgotten: an epoch, a replica, a revision, an endpoint",
    ["what"],
    registry=STORE,
)
RECONNECTS = Counter("ebb_database_reconnects", "Times that the LISTEN connection had to be made again", registry=STORE)
BROKER_LAG = Gauge(
    "ebb_broker_canary_lag_seconds",
    "From sending a message to a worker's having it, or since the first that has not arrived",
    registry=STORE,
)
UNSENT = Counter("ebb_broker_unsent", "Messages that the broker did not take; they are sent again", registry=STORE)
SHED = Counter(
    "ebb_control_shed",
    "Calls of people that were sent away because the database was slow, so that agents and gateways were not",
    registry=STORE,
)
