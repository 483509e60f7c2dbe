"""What a minute teaches of what a replica bears, and which minutes teach nothing."""

from dataclasses import replace

import msgspec

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.lessons import lesson
from control_plane.autoscaler.needs import Needs
from control_plane.autoscaler.policy import GatewayDemand, Observation
from control_plane.autoscaler.window import STABLE_S, Rates
from control_plane.endpoints.slo import Slo
from data_plane.wire.routes import Latency

NOW = 1_800_000_000.0
BORNE = Bearing(1000.0, 100.0)
SLO = Slo(ttft_p95_ms=500)
NEEDS = Needs(0.8, 0.8, 4.0)
DEMAND = GatewayDemand(4, 0, NOW, stable=Rates(4.0, 800.0, 0.0, STABLE_S), needs=NEEDS)
READY = Observation(1, 0, (DEMAND,), serving=1, last_ready_at=NOW - 500)
MISSED = Latency(50, STABLE_S, 900.0, 10.0)


def learned(observed: Observation = READY, latency: Latency = MISSED, changed_at: float = 0.0) -> Bearing | None:
    return lesson(BORNE, SLO, changed_at, observed, latency, NOW)


def test_a_missed_latency_under_load_is_learned_from() -> None:
    found = learned()
    assert found is not None and found.prefill_per_s < 800


def test_no_minute_teaches_in_which_replicas_came_or_somebody_waits_or_what_is_believed_changed() -> None:
    assert learned(replace(READY, starting=1)) is None
    assert learned(replace(READY, last_ready_at=NOW - STABLE_S + 1)) is None
    assert learned(replace(READY, demand=(replace(DEMAND, waiting=1),))) is None
    assert learned(changed_at=NOW - STABLE_S + 1) is None


def test_who_waited_for_a_start_teaches_nothing_of_those_who_came_after_it() -> None:
    late = msgspec.structs.replace(MISSED, ttft_p95_ms=30_000.0)
    assert learned(replace(READY, last_ready_at=NOW - STABLE_S - 29), late) is None
    assert learned(replace(READY, last_ready_at=NOW - STABLE_S - 31), late) is not None
