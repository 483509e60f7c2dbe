"""When work starts: what is counted of one endpoint, and what follows from all of them."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.autoscaler.habits import DAY_S, HALF_LIFE_S, Habits, Starts, day_of, hour_of, together

MONDAY = 4 * DAY_S


def office(weeks: int, each_hour: int = 1) -> Starts:
    """Work from nine to twelve, on working days."""
    starts = Starts()
    for day in range(7 * weeks):
        for hour in (9, 10, 11) * each_hour if day % 7 < 5 else ():
            starts.add(MONDAY + day * DAY_S + hour * 3600.0)
    return starts


def test_hours_and_days_are_of_utc() -> None:
    assert hour_of(MONDAY) == 0 and hour_of(MONDAY - 1.0) == 23 and hour_of(MONDAY + 9.5 * 3600) == 9
    assert [day_of(MONDAY + day * DAY_S) for day in range(8)] == [0, 1, 2, 3, 4, 5, 6, 0] and day_of(MONDAY - 1.0) == 6


def test_the_hour_of_the_day_tells() -> None:
    by_hour = office(4).by_hour(MONDAY + 28 * DAY_S, Habits())
    assert by_hour[10] > 4.0 and by_hour[20] < 0.3 and math.isclose(sum(by_hour), 24.0)


def test_of_an_endpoint_that_is_not_known_all_the_others_tell() -> None:
    now = MONDAY + 28 * DAY_S
    nobody, habits = Starts(), together([office(4)] * 20, now)
    assert nobody.by_hour(now, habits) == list(habits.hours) and nobody.by_hour(now, Habits()) == [1.0] * 24
    assert habits.hours[10] > 3.0 and habits.hours[20] < 0.5
    assert habits.days[0] > 1.2 and habits.days[1] < 0.3
    assert habits.on(MONDAY + 4 * DAY_S) == habits.days[0] and habits.on(MONDAY + 5 * DAY_S) == habits.days[1]


def test_days_are_judged_by_those_that_were() -> None:
    friday, sunday = (together([office(1)] * 20, MONDAY + day * DAY_S) for day in (5, 7))
    assert math.isclose(friday.days[0], 1.0, abs_tol=0.1), "a week that has had no weekend says nothing of one"
    assert sunday.days[0] > 1.2 > 0.4 > sunday.days[1]


def test_one_busy_endpoint_does_not_speak_for_all() -> None:
    now, night_owl = MONDAY + 28 * DAY_S, Starts()
    for step in range(10_000):
        night_owl.add(MONDAY + 27 * DAY_S + 3 * 3600.0 + step * 0.1)
    habits = together([night_owl, *[office(4)] * 10], now)
    assert habits.hours[10] > habits.hours[3]


@given(st.lists(st.lists(st.floats(0.0, 1e9), max_size=20), max_size=5), st.floats(0.0, 3e9))
@settings(max_examples=40, deadline=None)
def test_habits_are_shares_of_a_mean(told: list[list[float]], now: float) -> None:
    fleet: list[Starts] = []
    for times in told:
        fleet.append(Starts())
        for at in times:
            fleet[-1].add(at)
    habits = together(fleet, now)
    assert math.isclose(sum(habits.hours), 24.0) and min(habits.hours) > 0.0 and min(habits.days) > 0.0
    assert all(math.isclose(sum(starts.by_hour(now, habits)), 24.0) for starts in fleet)
    assert together([], now) == Habits() == together(fleet, now + 300 * HALF_LIFE_S) or fleet
