"""Usage in memory: rows packed and unpacked, sums, and what is read off classes of times."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.usage.hours import Sums, percentile_ms, sane
from control_plane.usage.packing import pack, unpack
from data_plane.wire.usage import UsageRow

NUMBER = st.integers(0, 2**40)
ROWS = st.builds(
    UsageRow,
    at_ms=st.integers(0, 2**42),
    ending=st.integers(0, 4),
    is_cold=st.booleans(),
    count=st.integers(1, 10_000),
    first_ms=st.integers(-1, 10**6),
    ms=NUMBER,
    prompt=NUMBER,
    cached=NUMBER,
    completion=NUMBER,
)


@given(st.lists(ROWS, max_size=20))
def test_what_is_packed_is_unpacked_in_order_of_time(rows: list[UsageRow]) -> None:
    again = unpack(pack(rows))
    assert [row.at_ms for row in again] == sorted(row.at_ms for row in rows)
    assert sorted(map(repr, again)) == sorted(map(repr, rows))


def test_a_request_takes_some_bytes() -> None:
    chance = random.Random(1)
    rows: list[UsageRow] = []
    for at in range(100):
        first_ms, ms = chance.randrange(2000), chance.randrange(2000)
        rows.append(UsageRow(1_700_000_000_000 + at * 100, 0, False, 1, first_ms, ms, 900, 500, 120))
    assert len(pack(rows)) < 20 * 100


@pytest.mark.parametrize("packed", [b"", b"rows", pack([])[:-3]])
def test_what_is_no_block_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="block of usage"):
        unpack(packed)


def test_sums_count_each_ending_and_all_of_a_row_that_stands_for_many() -> None:
    sums = Sums()
    for ending in range(5):
        sums.add(UsageRow(0, ending, ending == 2, 1, -1, 10, 5, 2, 3))
    sums.add(UsageRow(0, 0, True, 10, 1000, 5000, 50, 20, 30))
    told = (sums.requests, sums.refused, sums.failed, sums.cancelled, sums.cold)
    assert told == (15, 1, 2, 1, 11)
    assert (sums.prompt_tokens, sums.cached_tokens, sums.completion_tokens, sums.duration_ms) == (75, 30, 45, 5050)
    assert sum(sums.first) == 10, "each of the ten had a first token, after 100 ms in the mean"
    assert percentile_ms(sums.first, 0.5) == pytest.approx(100, rel=0.2)


@given(st.lists(st.integers(2, 600_000), min_size=1, max_size=300), st.sampled_from([0.5, 0.95]))
def test_percentiles_are_off_by_a_fifth_at_most(times: list[int], share: float) -> None:
    sums = Sums()
    for ms in times:
        sums.add(UsageRow(0, 0, False, 1, ms, ms, 1, 0, 1))
    exact = sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]
    told = percentile_ms(sums.first, share)
    assert told is not None and exact / 1.2 <= told <= exact * 1.2
    assert percentile_ms([], share) is None


def test_what_no_clock_or_counter_says_is_put_right() -> None:
    rows = [UsageRow(5, 9, False, 1, -7, -1, -1, 2**70, 3), UsageRow(10**15, 0, False, 0, 1, 1, 1, 1, 1)]
    rows.append(UsageRow(10**15, 0, False, 1, 1, 1, 1, 1, 1))
    old, future = sane(rows, 1000, 2000)
    assert (old.at_ms, old.ending, old.first_ms, old.ms, old.prompt, old.cached) == (1000, 2, -1, 0, 0, 2**31 - 1)
    assert future.at_ms == 2000
