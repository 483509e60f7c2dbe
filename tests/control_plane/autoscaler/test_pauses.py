"""When idle times begin and end, how their histories are kept, and what a byte is worth."""

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.autoscaler.habits import Habits, together
from control_plane.autoscaler.keepalive import History
from control_plane.autoscaler.pauses import Turn, decode, encode, turn
from control_plane.autoscaler.pressure import LEAST, MOST, pressure

NOW = 1_000_000.0


def test_an_idle_time_ends_with_work_and_begins_when_it_ends() -> None:
    assert turn(None, has_work=True, last_work_at=NOW, now=NOW) is None
    assert turn(None, has_work=False, last_work_at=None, now=NOW) is None, "it never worked"
    assert turn(None, has_work=False, last_work_at=NOW - 3, now=NOW) == Turn(None, NOW, NOW - 3)
    assert turn(NOW - 3, has_work=False, last_work_at=NOW - 3, now=NOW) is None, "it goes on"
    assert turn(NOW - 3, has_work=False, last_work_at=NOW - 2.5, now=NOW) is None, "the same, told less exactly"
    assert turn(NOW - 60, has_work=True, last_work_at=NOW, now=NOW) == Turn(60.0, NOW, None)


def test_work_between_two_looks_is_seen_by_its_end() -> None:
    assert turn(NOW - 60, has_work=False, last_work_at=NOW - 10, now=NOW) == Turn(50.0, NOW - 10, NOW - 10)


@given(st.lists(st.tuples(st.floats(1.0, 1e6), st.floats(0.0, 1e9)), max_size=30))
@settings(max_examples=30, deadline=None)
def test_a_history_is_kept_as_it_is(learned: list[tuple[float, float]]) -> None:
    history = History()
    for idle_s, at in learned:
        history.learn(idle_s, at)
    kept = decode(encode(history))
    now = max([at for _, at in learned], default=0.0)
    assert abs(kept.whole.count(now) - history.whole.count(now)) < 1e-3
    for seen, known in zip(kept.chances(now, Habits()), history.chances(now, Habits()), strict=True):
        assert abs(seen - known) < 1e-3
    for seen, known in zip(together([kept.starts], now).days, together([history.starts], now).days, strict=True):
        assert abs(seen - known) < 1e-6


def test_a_history_of_other_bins_is_begun_anew() -> None:
    history = History()
    history.learn(30.0, NOW)
    assert decode({**encode(history), "bins": 3}) == History() == decode({})


def test_a_history_that_was_kept_without_its_days_keeps_the_rest() -> None:
    history = History()
    history.learn(7200.0, NOW)
    row = encode(history)
    del row["days"], row["since"]
    kept = decode(row)
    assert kept.whole == history.whole and kept.starts.hours == history.starts.hours
    assert kept.starts.days.count(NOW) == kept.starts.since == 0.0


@given(st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 5))
def test_pressure_is_within_its_bounds_and_grows_with_what_is_taken(taken: int, usable: int, wanting: int) -> None:
    assert LEAST <= pressure(taken, usable, wanting) <= MOST
    assert pressure(taken, usable, wanting) <= pressure(taken + 10**9, usable, wanting)


def test_pressure_by_what_is_free() -> None:
    assert [pressure(part, 100, 0) for part in (0, 50, 75, 100, 150)] == [0.5, 1.0, 2.0, 8.0, 8.0]
    assert pressure(0, 100, 1) == MOST and pressure(0, 0, 0) == 1.0
