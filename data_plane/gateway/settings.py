"""What a gateway is told when it starts. Read once, in main; passed to the parts that need it."""

import math
from dataclasses import dataclass, field

from data_plane.gateway.knowledge import RoutePolicy
from data_plane.gateway.vitals import VitalLimits
from data_plane.router.runner_client import Timeouts


@dataclass(frozen=True)
class HoldLimits:
    """Bounds on requests that wait for a replica, per endpoint, and how patiently things are tried again."""

    default_hold_s: float = 300.0
    most_requests: int = 1_000
    most_bytes: int = 64 << 20
    wake_every_s: float = 2.0
    ahead_share: float = 0.25
    ahead_least: int = 2
    """Beyond what a replica runs at once, so much of that again waits inside it, so that its batch stays full while
    the next request is on its way; the rest waits here."""

    def most_on_replica(self, slots: int) -> int:
        """Requests that a replica of `slots` is sent at once."""
        slots = max(1, slots)
        return slots + max(self.ahead_least, math.ceil(slots * self.ahead_share))

    def most_at_home(self, slots: int) -> int:
        """The same where others have room, but it is this one that holds the prompt: as many more as it has slots."""
        return self.most_on_replica(slots) + max(1, slots)


@dataclass(frozen=True)
class StreamManners:
    """A held stream is silent for `silent_s`, so that a true status is still possible, then speaks now and then.

    A client that takes nothing for `stalled_s` although there is something for it is cut off.
    """

    silent_s: float = 25.0
    comment_every_s: float = 10.0
    stalled_s: float = 60.0


@dataclass(frozen=True)
class GatewaySettings:
    """`name` tells this gateway from others in its reports; `node_key` is an API key with scope node."""

    control_url: str
    node_key: str
    name: str
    host: str = "127.0.0.1"
    port: int = 7071
    most_body_bytes: int = 10 << 20
    body_timeout_s: float = 60.0
    drain_s: float = 30.0
    poll_wait_s: int = 20
    hold: HoldLimits = field(default_factory=HoldLimits)
    stream: StreamManners = field(default_factory=StreamManners)
    runner: Timeouts = field(default_factory=Timeouts)
    route_policy: RoutePolicy = "ebb"
    vitals: VitalLimits = field(default_factory=VitalLimits)
