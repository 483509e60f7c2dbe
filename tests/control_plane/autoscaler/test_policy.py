"""The policy's laws: within limits, monotone in load, never down while there is work, and no data changes nothing."""

import dataclasses
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.needs import LATELY_S, Needs
from control_plane.autoscaler.policy import (
    CALL_OFF_S,
    DOWN_SHARE,
    DOWN_WAITING,
    FRESH_S,
    Decision,
    GatewayDemand,
    Limits,
    Observation,
    decide,
)
from control_plane.autoscaler.window import STABLE_S, Rates

NOW = 1_000_000.0
MOMENT = st.one_of(st.none(), st.floats(NOW - 5000, NOW))


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    low = draw(st.integers(0, 8))
    return Limits(low, draw(st.integers(low, 16)), draw(st.floats(1, 600)), draw(st.integers(1, 64)))


REPORTS = st.lists(
    st.builds(GatewayDemand, st.integers(0, 200), st.integers(0, 200), st.floats(NOW - 60, NOW)), max_size=4
).map(tuple)
UNTIL = st.one_of(st.none(), st.floats(NOW - 100, NOW + 600))
SEEN = st.builds(
    Observation, st.integers(0, 16), st.integers(0, 3), REPORTS, MOMENT, MOMENT, MOMENT, UNTIL, st.integers(0, 3)
)


def load(seen: Observation) -> int:
    return sum(r.running + r.waiting for r in seen.demand if NOW - r.reported_at <= FRESH_S)


@given(SEEN, limits())
def test_always_within_limits_and_with_a_reason(seen: Observation, limits: Limits) -> None:
    decision = decide(seen, limits, NOW)
    assert limits.min <= decision.desired <= limits.max
    assert decision.reason.endswith((".", ")."))


@given(SEEN, limits())
def test_never_down_while_there_is_work(seen: Observation, limits: Limits) -> None:
    if load(seen) > 0:
        desired = decide(seen, limits, NOW).desired
        assert desired >= min(seen.desired, limits.max)
        assert desired >= min(limits.max, math.ceil(load(seen) / limits.target))
        assert desired >= min(1, limits.max)


@given(SEEN, limits(), st.integers(0, 50))
def test_more_load_never_means_fewer(seen: Observation, limits: Limits, more: int) -> None:
    extra = dataclasses.replace(seen, demand=(*seen.demand, GatewayDemand(0, more, NOW)))
    busier = dataclasses.replace(seen, demand=(*seen.demand, GatewayDemand(0, more + 1, NOW)))
    assert decide(busier, limits, NOW).desired >= decide(extra, limits, NOW).desired


@given(SEEN, limits())
def test_a_decision_is_at_rest_once_taken_when_busy(seen: Observation, limits: Limits) -> None:
    first = decide(seen, limits, NOW).desired
    assert decide(dataclasses.replace(seen, desired=first), limits, NOW).desired == first


@given(SEEN, limits())
def test_no_data_keeps_what_is(seen: Observation, limits: Limits) -> None:
    deaf = dataclasses.replace(
        seen, demand=tuple(dataclasses.replace(r, reported_at=NOW - FRESH_S - 1) for r in seen.demand)
    )
    assert decide(deaf, limits, NOW).desired == max(limits.min, min(limits.max, seen.desired))


def quiet(**changes: float) -> Observation:
    return dataclasses.replace(Observation(1, 0, (GatewayDemand(0, 0, NOW),), serving=1), **changes)


ONE = Limits(min=0, max=1, idle_s=30, target=32)


def test_idle_is_counted_from_work_from_waking_and_from_becoming_ready() -> None:
    assert decide(quiet(last_work_at=NOW - 29.9), ONE, NOW).desired == 1
    gone = decide(quiet(last_work_at=NOW - 30, last_wake_at=NOW - 99), ONE, NOW)
    assert (gone.desired, gone.reason) == (0, "No work for 30 s.")
    assert decide(quiet(last_work_at=NOW - 99, last_wake_at=NOW - 1), ONE, NOW).desired == 1
    assert decide(quiet(last_work_at=NOW - 99, last_ready_at=NOW - 1), ONE, NOW).desired == 1


@given(SEEN, limits(), st.floats(0, 1))
def test_without_news_nothing_changes_before_it_said_to_look_again(
    seen: Observation, limits: Limits, part: float
) -> None:
    heard_now = dataclasses.replace(seen, demand=(GatewayDemand(0, 0, NOW),))
    first = decide(heard_now, limits, NOW)
    settled = dataclasses.replace(heard_now, desired=first.desired)
    again_s = decide(settled, limits, NOW).again_s
    if math.isfinite(again_s):
        later = NOW + again_s * part * 0.999
        still_heard = dataclasses.replace(settled, demand=(GatewayDemand(0, 0, later),))
        assert decide(still_heard, limits, later).desired == first.desired
        over = NOW + again_s + 0.001
        assert decide(dataclasses.replace(settled, demand=(GatewayDemand(0, 0, over),)), limits, over).desired == (
            limits.min
        )


def waking(**changes: float) -> Observation:
    return quiet(starting=1, serving=0, **changes)


def test_a_start_that_nobody_waits_for_any_more_is_called_off() -> None:
    for limits in (ONE, Limits(min=0, max=1, idle_s=1, target=32), Limits(min=0, max=1, idle_s=600, target=32)):
        soon = decide(waking(last_wake_at=NOW - 9, last_work_at=NOW - 1), limits, NOW)
        assert (soon.desired, round(soon.again_s, 3)) == (1, CALL_OFF_S - 1)
        gone = decide(waking(last_wake_at=NOW - 9, last_work_at=NOW - CALL_OFF_S), limits, NOW)
        assert (gone.desired, gone.reason) == (0, "The start was called off: nobody waits any more.")
    waited_for = dataclasses.replace(waking(last_wake_at=NOW - 99), demand=(GatewayDemand(0, 1, NOW),))
    assert decide(waited_for, ONE, NOW).desired == 1


def test_a_promised_start_goes_on_until_whoever_counts_on_it_has_had_time_to_come() -> None:
    promised = waking(last_wake_at=NOW - 99, promised_until=NOW + 20)
    assert (decide(promised, ONE, NOW).desired, decide(promised, ONE, NOW).again_s) == (1, 20)
    heard = (GatewayDemand(0, 0, NOW + 20),)
    assert decide(dataclasses.replace(promised, demand=heard), ONE, NOW + 20).desired == 0


def test_what_replaces_a_lost_replica_is_no_start_that_somebody_waits_for() -> None:
    lost = waking(last_wake_at=NOW - 99, last_ready_at=NOW - 90, last_work_at=NOW - 29)
    assert decide(lost, ONE, NOW).desired == 1
    assert decide(dataclasses.replace(lost, last_work_at=NOW - 30), ONE, NOW).reason == "No work for 30 s."


def test_what_was_reported_before_a_start_was_asked_for_calls_nothing_off() -> None:
    """The control plane was killed between the wake and the report of who waits for it (F24)."""
    limits = Limits(0, 1, 30.0, 4)
    before, after = GatewayDemand(0, 0, NOW - 8), GatewayDemand(0, 0, NOW - 1)
    asked = dataclasses.replace(waking(last_wake_at=NOW - 7, last_work_at=NOW - 300), demand=(after, before))
    assert decide(asked, limits, NOW) == Decision(
        1, "A gateway has not reported since the start was asked for: what is stays."
    )
    assert decide(dataclasses.replace(asked, demand=(after, after)), limits, NOW).desired == 0
    assert decide(asked, limits, NOW + 5).desired == 0, "that one is not heard any more, and the other has nobody"


def test_growing_is_not_called_off_but_idles() -> None:
    growing = quiet(starting=1, serving=1, last_ready_at=NOW - 99, last_wake_at=NOW - 20)
    assert decide(growing, ONE, NOW).desired == 1
    assert decide(dataclasses.replace(growing, last_wake_at=NOW - 30), ONE, NOW).desired == 0


def test_growth_follows_the_target() -> None:
    four = Limits(min=0, max=4, idle_s=30, target=8)
    busy = Observation(1, 0, (GatewayDemand(8, 9, NOW), GatewayDemand(4, 0, NOW)))
    assert decide(busy, four, NOW).desired == 3
    assert decide(dataclasses.replace(busy, demand=(GatewayDemand(80, 900, NOW),)), four, NOW).desired == 4


def test_min_keeps_them_and_max_zero_takes_them() -> None:
    assert decide(quiet(desired=2, last_work_at=0.0), Limits(1, 4, 5, 8), NOW).desired == 1
    assert decide(quiet(desired=0), Limits(2, 4, 5, 8), NOW).desired == 2
    assert decide(Observation(1, 0, (GatewayDemand(3, 3, NOW),)), Limits(0, 0, 5, 8), NOW).desired == 0


RATES = st.one_of(
    st.none(), st.builds(Rates, st.floats(0, 300), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(1, 60))
)
PART = st.floats(0, 40)
NEEDS = st.one_of(
    st.none(),
    st.builds(
        Needs, PART, PART, st.floats(0, 300), st.lists(st.tuples(st.just(0.0), PART, PART), max_size=4).map(tuple)
    ),
)
WINDOWS = st.lists(
    st.builds(
        GatewayDemand,
        *(st.integers(0, 200), st.integers(0, 200), st.floats(NOW - 60, NOW), st.integers(0, 10**6)),
        *(RATES, RATES, NEEDS),
    ),
    max_size=3,
).map(tuple)
WORKING = st.builds(
    Observation,
    st.integers(0, 16),
    st.integers(0, 3),
    WINDOWS,
    MOMENT,
    MOMENT,
    MOMENT,
    UNTIL,
    st.integers(0, 3),
    MOMENT,
)
BEARS = st.one_of(st.none(), st.builds(Bearing, st.floats(1, 1e4), st.floats(1, 1e4), st.floats(1, 1e6)))


@given(WORKING, limits(), BEARS)
@settings(max_examples=60, deadline=None)
def test_with_windows_and_a_latency_it_stays_within_limits_and_says_why(
    seen: Observation, limits: Limits, bears: Bearing | None
) -> None:
    decision = decide(seen, dataclasses.replace(limits, bears=bears), NOW)
    assert limits.min <= decision.desired <= limits.max and decision.reason.endswith((".", ")."))
    if load(seen):
        assert decision.desired >= min(limits.max, math.ceil(load(seen) / limits.target)), "a queue counts at once"


@given(WORKING, limits(), BEARS)
@settings(max_examples=60, deadline=None)
def test_it_shrinks_only_to_what_would_have_held_a_whole_minute(
    seen: Observation, limits: Limits, bears: Bearing | None
) -> None:
    limits = dataclasses.replace(limits, bears=bears)
    desired = decide(seen, limits, NOW).desired
    if not load(seen) or desired >= min(seen.desired, limits.max):
        return
    fresh = [one for one in seen.demand if NOW - one.reported_at <= FRESH_S]
    grown_s = NOW - (seen.raised_at or 0.0)
    if bears is None:
        peaks = [one.peak for one in fresh if one.peak is not None]
        assert len(peaks) == len(fresh) and all(one.is_whole(STABLE_S) for one in peaks) and grown_s >= STABLE_S
        assert sum(one.concurrency for one in peaks) <= limits.target * desired * DOWN_SHARE + 1e-6
        return
    minutes = [one.stable for one in fresh if one.stable is not None]
    known = [one.needs for one in fresh if one.needs is not None]
    assert len(known) == len(minutes) == len(fresh) and all(one.is_whole(STABLE_S) for one in minutes)
    assert grown_s >= LATELY_S and sum(one.lately for one in known) <= desired + 1e-5
    assert sum(one.busy for one in known) <= limits.target * desired * DOWN_WAITING + 1e-3
    assert sum(one.kv_tokens for one in fresh) <= bears.kv_tokens * desired * (1 + 1e-5)


def busy(work: Rates, running: int = 8, bears: Bearing | None = None, **changes: object) -> GatewayDemand:
    """Steady work, of which no prompt may wait."""
    part = 0.0 if bears is None else bears.replicas(work)
    needs = Needs(part, part, work.concurrency, ((NOW - 60, part, 60 * part),))
    return dataclasses.replace(GatewayDemand(running, 0, NOW, 0, work, work, needs), **changes)  # type: ignore[arg-type]


@given(st.floats(0.5, 60), st.floats(0, 5000), st.floats(0, 5000), st.integers(1, 16), st.integers(1, 20), BEARS)
@settings(max_examples=40, deadline=None)
def test_steady_work_settles_and_does_not_flap(
    concurrency: float, prefill: float, decode: float, begin: int, target: int, bears: Bearing | None
) -> None:
    limits = Limits(0, 16, 30, target, bears)
    report = busy(Rates(concurrency, prefill, decode, 60.0), max(1, math.ceil(concurrency)), bears)
    desired, raised_at, counts = begin, None, list[int]()
    for step in range(40):
        now = NOW + step * 30.0
        seen = Observation(
            desired, 0, (dataclasses.replace(report, reported_at=now),), now, serving=desired, raised_at=raised_at
        )
        after = decide(seen, limits, now).desired
        raised_at = now if after > desired else raised_at
        desired = after
        counts.append(desired)
    assert len(set(counts[4:])) == 1, counts


BEARING = Bearing(1000.0, 100.0, 8000.0)


def test_a_latency_to_hold_counts_tokens_where_requests_would_not() -> None:
    limits = Limits(0, 8, 30, 32, BEARING)
    seen = Observation(1, 0, (busy(Rates(3.0, 1500.0, 50.0, 60.0), 3, BEARING),), NOW, serving=1, raised_at=0.0)
    grown = decide(seen, limits, NOW)
    assert grown.desired == 2 and "1500 tokens/s of prompts, 50 of answers" in grown.reason
    assert "one bears 1000 and 100 tokens/s" in grown.reason
    assert decide(seen, dataclasses.replace(limits, bears=None), NOW).desired == 1
    full = dataclasses.replace(seen, demand=(busy(Rates(3.0, 10.0, 5.0, 60.0), 8, BEARING, kv_tokens=30_000),))
    assert decide(full, limits, NOW).desired == 4


def after(*minutes: tuple[float, float], **changes: float) -> GatewayDemand:
    """Three requests run after minutes of (need, work), and next to nothing since."""
    past = tuple((NOW - 60.0 * (len(minutes) - at), need, work) for at, (need, work) in enumerate(minutes))
    needs = dataclasses.replace(Needs(0.5, 0.5, 3.0, past), **changes)
    return GatewayDemand(3, 0, NOW, 0, Rates(3.0, 10.0, 10.0, 60.0), None, needs)


def test_pending_replicas_count_and_a_burst_of_seconds_counts_at_once() -> None:
    limits = Limits(0, 8, 30, 32, BEARING)
    seen = Observation(1, 0, (after(now=2.9, lately=2.9),), NOW, serving=1, raised_at=0.0)
    assert decide(seen, limits, NOW).desired == 3
    grown = dataclasses.replace(seen, desired=3, starting=2, raised_at=NOW)
    assert decide(grown, limits, NOW).desired == 3, "they are on their way"


def test_what_bursts_took_is_kept_for_the_next_and_steady_work_needs_nothing_more() -> None:
    limits = Limits(0, 8, 30, 32, BEARING)
    swinging = Observation(1, 0, (after((1.0, 10.0), (4.0, 60.0), (0.5, 5.0)),), NOW, serving=1)
    kept = decide(swinging, limits, NOW)
    assert kept.desired == 6 and "took 4.0 give or take 1.5" in kept.reason
    rare = dataclasses.replace(swinging, demand=(after((1.0, 100.0), (4.0, 60.0)),))
    assert decide(rare, limits, NOW).desired < 3, "most came in the calm minute"
    steady = dataclasses.replace(swinging, demand=(after((3.9, 60.0), (3.9, 70.0), (3.9, 60.0)),))
    assert decide(steady, limits, NOW).desired == 4
    held = dataclasses.replace(swinging, desired=8, serving=8, raised_at=NOW - LATELY_S)
    fewer = decide(held, limits, NOW)
    assert fewer.desired == 6 and "in the last minutes for 4.0 give or take 1.5: 6 of 8" in fewer.reason
    assert decide(dataclasses.replace(held, raised_at=NOW - LATELY_S + 1), limits, NOW).desired == 8, "just grown"


def test_who_waits_counts_unless_his_turn_comes_in_time() -> None:
    limits = Limits(0, 8, 30, 4, dataclasses.replace(BEARING, wait_s=4.0))
    queue = dataclasses.replace(after((0.5, 60.0)), running=4, waiting=12)
    seen = Observation(1, 0, (queue,), NOW, serving=1)
    for rate, desired in ((0.0, 4), (0.5, 3), (1.0, 2), (1.5, 1)):
        assert decide(dataclasses.replace(seen, answers_per_s=rate), limits, NOW).desired == desired
    unbound = dataclasses.replace(limits, bears=None)
    assert decide(dataclasses.replace(seen, answers_per_s=9.0), unbound, NOW).desired == 4


def test_whom_ending_replicas_still_serve_wakes_nobody_and_who_waits_does() -> None:
    asleep = Observation(0, 0, (GatewayDemand(2, 0, NOW),), NOW)
    assert decide(asleep, Limits(0, 4, 30, 8), NOW).desired == 0
    waited = dataclasses.replace(asleep, demand=(GatewayDemand(2, 1, NOW),))
    assert decide(waited, Limits(0, 4, 30, 8), NOW).desired == 1
    assert decide(asleep, Limits(1, 4, 30, 8), NOW).desired == 1


def test_it_shrinks_partly_while_it_works_and_while_it_idles() -> None:
    limits = Limits(0, 8, 300, 8)
    seen = Observation(4, 0, (busy(Rates(5.0, 10.0, 10.0, 60.0), running=5),), NOW, serving=4, raised_at=NOW - 61)
    fewer = decide(seen, limits, NOW)
    assert fewer.desired == 1 and "1 of 4 replicas would have held it" in fewer.reason
    assert decide(dataclasses.replace(seen, raised_at=NOW - 59), limits, NOW).desired == 4, "just grown"
    young = dataclasses.replace(seen, demand=(busy(Rates(5.0, 10.0, 10.0, 30.0), running=5),))
    assert decide(young, limits, NOW).desired == 4, "half a minute is not known"
    idle = dataclasses.replace(seen, demand=(busy(Rates(0.0, 0.0, 0.0, 60.0), running=0),), last_work_at=NOW - 61)
    assert decide(idle, limits, NOW).desired == 1 and decide(idle, Limits(2, 8, 300, 8), NOW).desired == 2
    unknown = dataclasses.replace(seen, demand=(*seen.demand, GatewayDemand(1, 0, NOW)))
    assert decide(unknown, limits, NOW).desired == 4, "another gateway's work is not known"


def test_a_restart_neither_collapses_nor_doubles_the_fleet() -> None:
    limits = Limits(0, 8, 30, 8, BEARING)
    before = Observation(4, 0, (busy(Rates(20.0, 3000.0, 50.0, 60.0), 20, BEARING),), NOW, serving=4, raised_at=0.0)
    assert decide(before, limits, NOW).desired == 4
    for demand in ((), (GatewayDemand(20, 0, NOW - FRESH_S - 1),)):
        assert decide(dataclasses.replace(before, demand=demand), limits, NOW + 1).desired == 4
    newborn = (dataclasses.replace(GatewayDemand(20, 3, NOW), kv_tokens=100),)
    assert decide(dataclasses.replace(before, demand=newborn), limits, NOW).desired == 4, "a gateway without windows"
