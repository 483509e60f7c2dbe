"""Consistent hashing: agreement without a word, few moves, and nobody over the bound."""

from collections import Counter
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.router.ring import MOST_OVER_MEAN, Ring, ring_of

members = st.lists(st.text("abcdef0123456789", min_size=4, max_size=8), min_size=1, max_size=6, unique=True)


@settings(max_examples=15, deadline=None)
@given(members, st.lists(st.sampled_from(["x", "y", "z", "w"]) | st.text(max_size=5), min_size=1, max_size=80))
def test_no_member_is_ever_over_the_bound(names: list[str], keys: list[str]) -> None:
    ring = Ring(tuple(sorted(names)))
    loads = dict.fromkeys(names, 0)
    for number, key in enumerate(keys, 1):
        loads[ring.pick(key, loads)] += 1
        assert max(loads.values()) <= ceil(MOST_OVER_MEAN * number / len(names))


@settings(max_examples=30, deadline=None)
@given(members, st.text(max_size=8))
def test_a_walk_meets_every_member_once(names: list[str], key: str) -> None:
    assert sorted(Ring(tuple(sorted(names))).walk(key)) == sorted(names)


def test_gateways_that_never_spoke_agree() -> None:
    ours, theirs = Ring(("a", "b", "c")), Ring(("a", "b", "c"))
    assert all(list(ours.walk(str(key))) == list(theirs.walk(str(key))) for key in range(200))
    assert ring_of(("a", "b", "c")) is ring_of(("a", "b", "c"))


def test_keys_spread_and_only_those_of_a_lost_member_move() -> None:
    before, after = Ring(("a", "b", "c", "d")), Ring(("a", "b", "c"))
    first = {key: next(before.walk(str(key))) for key in range(4_000)}
    counts = Counter(first.values())
    assert max(counts.values()) < 1.5 * min(counts.values())
    moved = [key for key, member in first.items() if next(after.walk(str(key))) != member]
    assert {first[key] for key in moved} == {"d"}


def test_a_full_member_passes_its_key_to_the_next_on_the_ring() -> None:
    ring = Ring(("a", "b", "c"))
    first, second, third = ring.walk("key")
    assert ring.pick("key", {}) == first
    assert ring.pick("key", {first: 3, second: 1, third: 1}) == second
    assert ring.pick("key", {first: 9, second: 9, third: 0}) == third
