"""When an idle replica is kept and when it is woken: what the history says, and what it costs."""

import math
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.autoscaler.habits import DAY_S, HALF_LIFE_S, Habits, Histogram
from control_plane.autoscaler.keepalive import (
    BINS,
    CELLS,
    EDGES,
    ENOUGH,
    History,
    Plan,
    Terms,
    bin_of,
    idle_limit_s,
    plan,
    wake,
)

MONDAY = 4 * DAY_S
TERMS = Terms(start_s=20.0, memory_bytes=16_000_000_000, worth=240.0)
WORTH_HOURS = Terms(20.0, 16 * 10**9, 24_000.0)
GAPS = st.lists(st.floats(1.0, 7 * DAY_S), max_size=30)


def history_of(gaps: list[float], begin: float = MONDAY) -> History:
    history, at = History(), begin
    for gap in gaps:
        at += gap
        history.learn(gap, at)
    return history


def test_too_little_history_is_a_constant_and_says_so() -> None:
    planned = plan(history_of([0.5]), TERMS, MONDAY)
    assert planned.held == ((0.0, 300.0),) and planned.is_fallback
    assert "Only 0.0 idle times" in planned.reason and "constant 300 s" in planned.reason
    assert not wake(planned, MONDAY, MONDAY + 1e6).is_due


def test_a_constant_of_nothing_holds_nothing() -> None:
    planned = plan(History(), Terms(20.0, 1, constant_s=0.0), MONDAY)
    assert planned.held == () and not planned.is_held(0.0) and idle_limit_s(planned, 0.0, 0.0, 1.0) == 1.0


def test_short_pauses_are_held_through_and_then_let_go() -> None:
    planned = plan(history_of([40.0] * 20), TERMS, MONDAY + 800)
    ((start, end),) = planned.held
    assert start == 0.0 and 40.0 < end < 300.0 and not planned.is_fallback and "Kept for" in planned.reason


def test_a_pause_longer_than_it_is_worth_is_slept_through_and_woken_from_ahead() -> None:
    planned = plan(history_of([3600.0] * 30), Terms(TERMS.start_s, TERMS.memory_bytes, 400.0), MONDAY + 30 * 3600)
    *before, (start, end) = planned.held
    assert all(kept_until < 60.0 for _, kept_until in before)
    assert 60.0 < start <= 3600.0 - TERMS.start_s and end > 3600.0 and "woken ahead" in planned.reason
    early, due, late = (wake(planned, MONDAY, MONDAY + at) for at in (10.0, start + 1.0, end + 1.0))
    assert not early.is_due and math.isclose(early.again_s, start - 10.0)
    assert due.is_due and math.isclose(due.held_until, MONDAY + end)
    assert not late.is_due and late.again_s == math.inf


def test_pauses_of_no_pattern_far_apart_are_not_held() -> None:
    planned = plan(history_of([3600.0 * step for step in range(1, 60)]), TERMS, MONDAY)
    assert planned.held[0][1] < 60.0 and len(planned.held) == 1 and planned.reason.startswith("Kept for ")


def test_what_comes_at_two_lengths_is_woken_ahead_at_both_and_sleeps_between() -> None:
    planned = plan(history_of([3000.0, 4500.0] * 15), Terms(20.0, 16 * 10**9), MONDAY + 15 * 7500.0)
    first, second = planned.held[-2:]
    assert 2000.0 < first[0] < 3000.0 < first[1] < second[0] < 4500.0 < second[1] < 6000.0


def test_old_idle_times_are_forgotten() -> None:
    history = history_of([40.0] * 20)
    assert plan(history, TERMS, MONDAY + HALF_LIFE_S * 10).is_fallback
    for step in range(10):
        history.learn(3600.0, MONDAY + HALF_LIFE_S * 10 + step)
    assert max(history.whole.weights) == history.whole.weights[bin_of(3600.0)]


def test_one_idle_time_is_enough_to_plan_by_what_is_usual() -> None:
    short, long = (plan(history_of([30.0]), Terms(20.0, 16 * 10**9, worth), MONDAY + 30) for worth in (240.0, 48_000.0))
    assert not short.is_fallback and short.held[0][0] == long.held[0][0] == 0.0
    assert 60.0 < short.held[0][1] < 300.0 < 3600.0 < long.held[0][1]


def test_an_endpoint_that_is_used_by_the_hour_is_kept_longer_than_one_used_by_the_week() -> None:
    worth = Terms(20.0, 16 * 10**9)
    often, seldom = history_of([1200.0 + 60.0 * step for step in range(20)]), history_of([5 * DAY_S, 6 * DAY_S] * 4)
    kept = [plan(history, worth, history.whole.at) for history in (often, seldom)]
    assert kept[0].is_held(2000.0) and not kept[1].is_held(2000.0)


def test_what_all_endpoints_do_at_night_tells_of_one_that_is_hardly_known() -> None:
    history, evening = history_of([3600.0, 7200.0]), MONDAY + 22 * 3600.0
    sleepers = Habits(hours=tuple(0.1 if hour in (22, 23, 0, 1, 2, 3) else 1.3 for hour in range(24)))
    resters = Habits(days=(1.2, 0.2))
    saturday = evening + 5 * DAY_S
    alone, with_all = (plan(history, WORTH_HOURS, evening, habits) for habits in (None, sleepers))
    assert alone.held_until(0.0) > 2 * 3600.0 > with_all.held_until(0.0)
    kept = [plan(history, WORTH_HOURS, at, resters).held_until(0.0) for at in (evening, saturday - 6 * 3600.0)]
    assert kept[0] > 1.5 * kept[1], "the weekend begins before most of it is over"


def test_rates_are_counts_over_time_spent() -> None:
    history = history_of([100.0] * 200)
    rates = history.rates(history.whole.at)
    assert rates[bin_of(100.0)] > 20 * rates[bin_of(70.0)] and min(rates) > 0.0
    chances = history.chances(history.whole.at, Habits())
    assert len(chances) == len(CELLS) and all(0.0 <= chance <= 1.0 for chance in chances)


def test_a_limit_counts_from_the_start_that_came_since() -> None:
    planned = Plan(((0.0, 10.0), (100.0, 150.0)), "")
    assert idle_limit_s(planned, 1000.0, 1000.0, 1004.0) == 10.0
    assert idle_limit_s(planned, 1000.0, 1120.0, 1130.0) == 30.0
    assert idle_limit_s(planned, 1000.0, 1000.0, 1050.0) == 50.0  # held no longer: at once


def test_nonsense_is_not_learned() -> None:
    history = history_of([0.0, 0.5, -3.0, math.nan, math.inf])
    assert history.whole.count(MONDAY) == history.starts.hours.count(MONDAY) == 0.0


@given(GAPS, st.floats(0.0, 100.0), st.integers(1, 10**12), st.floats(0.0, 1e5), st.floats(0.1, 10.0))
@settings(max_examples=60, deadline=None)
def test_a_plan_is_always_in_order(gaps: list[float], start_s: float, size: int, worth: float, pressure: float) -> None:
    history = history_of(gaps)
    planned = plan(history, Terms(start_s, size, worth, pressure), MONDAY + sum(gaps, 0.0))
    flat = [moment for stretch in planned.held for moment in stretch]
    assert flat == sorted(flat) and all(start < end for start, end in planned.held)
    assert planned.is_fallback == (history.whole.count(MONDAY + sum(gaps, 0.0)) < ENOUGH) and planned.reason
    for start, end in planned.held:
        middle = (start + end) / 2
        assert planned.is_held(middle) and planned.held_until(middle) == end and planned.next_start(start) > start


@given(st.lists(st.floats(1.0, DAY_S), min_size=5, max_size=30))
@settings(max_examples=40, deadline=None)
def test_memory_that_others_want_is_held_no_longer(gaps: list[float]) -> None:
    history, now = history_of(gaps), MONDAY + sum(gaps)
    held = [
        expected(history, plan(history, Terms(20.0, 16 * 10**9, pressure=pressure), now), now)
        for pressure in (0.5, 1.0, 2.0, 8.0)
    ]
    assert all(later <= before + 1e-6 for before, later in pairwise(held))


def expected(history: History, planned: Plan, now: float) -> float:
    """The seconds that a plan is expected to hold a replica, its starts' early time included."""
    total, left = 0.0, 1.0
    for (begin, stop, _), chance in zip(CELLS, history.chances(now, Habits()), strict=True):
        middle = (begin + stop) / 2
        total += left * chance * sum(max(0.0, min(middle, end) - start) for start, end in planned.held)
        left *= 1.0 - chance
    return total + left * sum(end - start for start, end in planned.held)


@given(st.lists(st.tuples(st.floats(0.0, 1e9), st.floats(0.0, 1e9)), max_size=40))
@settings(max_examples=40, deadline=None)
def test_a_histogram_never_counts_more_than_it_was_told(told: list[tuple[float, float]]) -> None:
    histogram = Histogram([0.0] * BINS)
    for idle_s, at in told:
        histogram.add(bin_of(idle_s), at)
    assert 0.0 <= histogram.count(2e9) <= histogram.count(0.0) <= len(told) + 1e-6
    assert len(histogram.weights) == BINS and all(weight >= 0.0 for weight in histogram.weights)


@given(st.floats(0.0, 1e9))
def test_every_idle_time_has_its_bin(idle_s: float) -> None:
    at = bin_of(idle_s)
    assert EDGES[at] <= idle_s and (idle_s < EDGES[at + 1] or at == BINS - 1)
