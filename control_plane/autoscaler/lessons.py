"""What a minute of serving teaches of what a replica bears. Pure; knows no rows, clock or replicas of its own."""

from collections.abc import Sequence

from control_plane.autoscaler.bearing import Bearing, Seen, corrected
from control_plane.autoscaler.needs import together as needs_together
from control_plane.autoscaler.policy import FRESH_S, Observation
from control_plane.autoscaler.window import STABLE_S, together
from control_plane.endpoints.slo import Slo
from data_plane.wire.routes import Latency


def lesson(
    bearing: Bearing, slo: Slo, changed_at: float, observed: Observation, latency: Latency | None, now: float
) -> Bearing | None:
    """What is to be believed after the last minute; None where it taught nothing, or was no minute to learn from:
    replicas came, went or were lacking in it, or what is believed changed (`changed_at`, Unix seconds)."""
    steady = observed.starting == 0 and observed.serving == observed.desired and (observed.last_ready_at or now)
    if latency is None or not steady:
        return None
    # who had to wait came before the minute in which he was answered
    came_s = STABLE_S + (latency.ttft_p95_ms or 0.0) / 1000
    if min(now - steady, now - changed_at) < came_s:
        return None
    fresh = [report for report in observed.demand if now - report.reported_at <= FRESH_S]
    rates, needs = together([report.stable for report in fresh]), needs_together([report.needs for report in fresh])
    if rates is None or needs is None or any(report.waiting for report in fresh):
        return None
    most = needs.most(now - 2 * STABLE_S)
    seen = Seen(rates, observed.serving, latency.answers, latency.ttft_p95_ms, latency.itl_p95_ms, most)
    better = corrected(bearing, slo, seen)
    return None if better == bearing else better


def merged(latencies: Sequence[Latency]) -> Latency | None:
    """Of several gateways together: the worst of their percentiles."""
    if not latencies:
        return None
    return Latency(
        sum(one.answers for one in latencies),
        max(one.over_s for one in latencies),
        max((one.ttft_p95_ms for one in latencies if one.ttft_p95_ms is not None), default=None),
        max((one.itl_p95_ms for one in latencies if one.itl_p95_ms is not None), default=None),
    )
