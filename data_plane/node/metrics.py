"""The agent's own numbers for Prometheus. Knows nothing of where they come from."""

from collections import Counter as Tally
from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from data_plane.wire.fleet import ObservedReplica, ReplicaPhase


class NodeMetrics:
    """Counts starts and their ends in a registry of its own, so that two agents in one test do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._replicas = Gauge("ebb_node_replicas", "Replicas on this node.", ["phase"], registry=self.registry)
        self.starts = Counter("ebb_node_starts", "Runner processes started.", registry=self.registry)
        self.adoptions = Counter("ebb_node_adoptions", "Running runners adopted.", registry=self.registry)
        self.failures = Counter("ebb_node_failures", "Replicas that failed.", ["fatal"], registry=self.registry)
        self.stale = Counter(
            "ebb_node_stale_commands", "Commands that came late and changed nothing.", registry=self.registry
        )
        self.quarantined = Counter(
            "ebb_node_artifacts_quarantined", "Artifacts found corrupt and put aside.", registry=self.registry
        )
        self.start_seconds = Histogram(
            "ebb_node_start_seconds",
            "From the start of a runner's process to ready.",
            buckets=(0.25, 0.5, 1, 2, 3, 5, 10, 20, 40, 80, 160, 320),
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def render(self, replicas: Iterable[ObservedReplica]) -> bytes:
        """The exposition text; the gauges are set from the replicas as they are now."""
        tally = Tally(replica.phase for replica in replicas)
        for phase in get_args(ReplicaPhase):
            self._replicas.labels(phase).set(tally[phase])
        return generate_latest(self.registry)
