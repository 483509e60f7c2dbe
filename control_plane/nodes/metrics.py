"""What nodes' agents were refused, for Prometheus. Knows nothing of how it is scraped."""

from prometheus_client import CollectorRegistry, Counter

NODES = CollectorRegistry()

REFUSED = Counter(
    "ebb_node_refusals",
    "Calls of agents that were refused: of an older epoch, under a name that another has, or of a removed node",
    ["reason"],
    registry=NODES,
)
STALE, TAKEN, REMOVED = "stale_epoch", "name_taken", "removed"
