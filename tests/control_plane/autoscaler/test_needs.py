"""How many replicas work takes: what waits in time needs none, and what swings is kept for."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.needs import LATELY_S, Needs, needs, together
from control_plane.endpoints.minutes import KEPT_S, Sample, split, with_sample

NOW = 600_000.0
BEARS = Bearing(1000.0, 100.0, wait_s=4.0)


def kept_of(rates: list[float], begin: float = NOW) -> list[Sample]:
    """So many prompt tokens a second in each two seconds; ends at `begin` and as long after it."""
    tokens, kept = 0.0, with_sample([], (begin, 0.0, 0.0, 0.0))
    for step, rate in enumerate(rates, 1):
        tokens += 2 * rate
        kept = with_sample(kept, (begin + 2 * step, step * 8.0, tokens, 0.0))
    return kept


def seen(kept: list[Sample], now: float, *, is_idle: bool = False, bears: Bearing = BEARS) -> Needs:
    minutes, samples = split(kept)
    found = needs(samples, minutes, bears, now, is_idle=is_idle)
    assert found is not None
    return found


def test_steady_work_takes_a_little_less_than_it_is_for_some_may_wait() -> None:
    steady = seen(kept_of([3000.0] * 150), NOW + 300)
    assert steady.now == pytest.approx(3.0 * 60 / 64, rel=0.02) == steady.lately
    usual, swing = steady.usual()
    assert usual == pytest.approx(steady.now, rel=0.05) and swing < 0.1 and steady.busy == pytest.approx(4.0)
    alone = seen(kept_of([3000.0] * 150), NOW + 300, bears=Bearing(1000.0, 100.0))
    assert alone.now == pytest.approx(3.0), "where none may wait"


def test_a_burst_is_needed_for_lately_and_kept_for_by_those_who_came_in_it() -> None:
    rates = [200.0] * 40 + [6000.0] * 5 + [0.0] * 60
    bursting = seen(kept_of(rates[:45]), NOW + 90)
    assert bursting.now == pytest.approx(6.0 * 6 / 10, rel=0.05)
    later = seen(kept_of(rates), NOW + 210)
    assert later.now < 1.5 and later.lately == later.now and later.usual()[0] == pytest.approx(3.6, rel=0.05)
    asleep = seen(kept_of(rates), NOW + 210 + KEPT_S + 60, is_idle=True)
    assert asleep.usual() == (0.0, 0.0) and asleep.now == asleep.busy == 0.0


def test_a_minute_that_no_sample_closed_is_still_known() -> None:
    kept = kept_of([5000.0] * 20)
    later = seen(kept, NOW + 300, is_idle=True)
    assert later.usual()[0] == pytest.approx(200 / 64, rel=0.05) and later.lately == 0.0


@given(st.lists(st.floats(0, 9000), min_size=4, max_size=60), st.floats(0.5, 10.0))
@settings(max_examples=40, deadline=None)
def test_so_many_hold_what_was_looked_at(rates: list[float], wait_s: float) -> None:
    bears = Bearing(1000.0, 100.0, wait_s=wait_s)
    found = seen(kept_of(rates), NOW + 2 * len(rates), bears=bears)
    for steps in (3, 10, 30):
        if steps <= len(rates):
            work, span_s = sum(rates[-steps:]) * 2 / 1000, 2.0 * steps
            assert work <= found.now * (span_s + wait_s) * (1 + 1e-6), "nobody waits longer by this window"
    assert found.lately >= found.now and found.usual()[0] <= max(rates) / 1000 + 1e-6


def test_gateways_are_added_minute_by_minute() -> None:
    one = Needs(1.0, 2.0, 3.0, ((60.0, 1.0, 10.0), (120.0, 2.0, 20.0)))
    assert together([one]) == one and together([one, None]) is None and together([]) is None
    assert together([one, one]) == Needs(2.0, 4.0, 6.0, ((60.0, 2.0, 20.0), (120.0, 4.0, 40.0)))
    other = Needs(0.5, 0.5, 0.5, ((120.0, 1.0, 5.0), (180.0, 1.0, 1.0)))
    assert together([one, other]) == Needs(1.5, 2.5, 3.5, ((60.0, 1.0, 10.0), (120.0, 3.0, 25.0), (180.0, 1.0, 1.0)))


def test_what_most_came_in_counts_and_rare_minutes_only_as_a_swing() -> None:
    usual, swing = Needs(0, 0, 0, ((0.0, 1.0, 90.0), (60.0, 9.0, 10.0))).usual()
    assert usual == 1.0 and swing == pytest.approx(2.4 / 1.8)
    assert Needs(0, 0, 0, ((0.0, 1.0, 10.0), (60.0, 9.0, 90.0))).usual()[0] == 9.0
    assert Needs(0, 0, 0, ((0.0, 1.0, 1.0), (60.0, 9.0, 1.0))).most(30.0) == 9.0 and Needs(0, 0, 0).most(0.0) == 0.0


def test_fewer_than_two_moments_are_no_data() -> None:
    assert needs([], [], BEARS, NOW) is None and needs([(NOW, 1.0, 1.0, 1.0)], [], BEARS, NOW) is None
    assert LATELY_S < 60.0 and math.isinf(BEARS.kv_tokens)
