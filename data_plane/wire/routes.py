"""What the control plane tells gateways (routes and keys) and what gateways tell it (demand). No I/O."""

from typing import Literal

import msgspec

from data_plane.wire.keys import KeyRecord
from data_plane.wire.usage import UsageBatch

EndpointState = Literal["zero", "waking", "live", "draining", "failed"]
CAPACITY = "capacity"
"""The phase of a waking endpoint that waits for memory: others hold what there is."""


class ReplicaRoute(msgspec.Struct, frozen=True):
    """A replica that takes requests. `token` is the secret of this launch; send it as a bearer token."""

    id: str
    url: str
    token: str
    slots: int


class EndpointRoute(msgspec.Struct, frozen=True):
    """One endpoint as the gateway sees it. `replicas` holds only those that are ready and not draining."""

    id: str
    tenant: str
    name: str
    model: str
    state: EndpointState
    created: int
    max_model_len: int
    replicas: tuple[ReplicaRoute, ...] = ()
    phase: str | None = None
    """While waking: placing, starting, loading, warming or parked (it was told to run again), or capacity."""
    eta_s: float | None = None
    """While waking: seconds that such starts take (the median of the last), less what has passed. None: never seen."""
    reason: str | None = None
    """While failed: why, in a sentence for people; while waking what keeps it from starting, where something does."""
    retry_at: float | None = None
    """While failed: Unix seconds from which a request may wake it again. None: not before someone changes something."""
    wait_s: float | None = None
    """Where it has a latency to hold: within so many seconds a prompt must be computed for that."""


class GatewayState(msgspec.Struct, frozen=True):
    """All a gateway needs to serve. `version` is opaque: send it back to wait for another one."""

    version: str
    endpoints: tuple[EndpointRoute, ...]
    keys: tuple[KeyRecord, ...]
    gateways: int = 1
    """Gateways that report: each allows its part of a key's limits."""


class Totals(msgspec.Struct, frozen=True):
    """Counters of one gateway on one endpoint since it started: their differences tell the work of any stretch of time,
    also where reports between were lost."""

    busy_s: float
    """Requests in hand, integrated over time."""
    prefill_tokens: float
    """Of prompts that came, without what a replica should hold of them."""
    decode_tokens: float
    """Of answers, as far as they were relayed."""


class Latency(msgspec.Struct, frozen=True):
    """What the answers that ended in the last `over_s` seconds took; 95th percentiles, None where there was none."""

    answers: int
    over_s: float
    ttft_p95_ms: float | None = None
    itl_p95_ms: float | None = None
    """Between two tokens, each answer's mean."""


class EndpointDemand(msgspec.Struct, frozen=True):
    """Work on one endpoint at one gateway now, and how long ago the last of it ended: 0.0 while there is some, None
    where this gateway never saw any."""

    endpoint_id: str
    running: int
    waiting: int
    idle_for_s: float | None
    kv_tokens: int = 0
    """About what the running requests hold in KV caches."""
    totals: Totals | None = None
    latency: Latency | None = None


class DemandReport(msgspec.Struct, frozen=True):
    """Sent at once when an endpoint becomes busy or idle, every second while any is busy, every 5 s otherwise. It names
    the endpoints with work and those whose work ended since the last report that arrived; the others are as they were.
    """

    gateway: str
    endpoints: tuple[EndpointDemand, ...]
    is_whole: bool = False
    """The first after a start, or after one that was lost: an endpoint that it does not name has no work there."""
    usage: UsageBatch | None = None
    """Now and then: what requests that have ended used."""


class WakeRequest(msgspec.Struct, frozen=True):
    """A gateway holds `waiting` requests for an endpoint without a ready replica. Repeated every 2 s while it does."""

    gateway: str
    request_id: str
    waiting: int
    again_s: float = 0.0
    """A client that waits no longer was told to come again in so many seconds: the start is not called off before."""


class WakeAnswer(msgspec.Struct, frozen=True):
    """The endpoint's state after the wake was recorded."""

    state: EndpointState
    phase: str | None = None
    reason: str | None = None
