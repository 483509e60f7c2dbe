"""Room is made by those whose loss costs least: as little as any choice would, and never by who works or is needed."""

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.endpoints.memory import GIB, MIB
from control_plane.placement.eviction import (
    SERVED_REST_S,
    TURN_S,
    UNITS,
    UNSERVED_REST_S,
    Eviction,
    Resident,
    arrivals_per_s,
    evict,
    turn,
)

SPOT = ("node", "cpu")
IDLE = Resident("r", "e", "e", SPOT, "ready", GIB, has_work=False, ready_for_s=600.0, idle_s=60.0, arrivals_per_s=0.01)


def idle(name: str, size: int = GIB, **facts: Any) -> Resident:
    return dataclasses.replace(IDLE, replica_id=name, endpoint_id=name, endpoint=name, holds_bytes=size, **facts)


def names(chosen: tuple[Eviction, ...] | None) -> list[str]:
    assert chosen is not None
    return sorted(each.replica_id for each in chosen)


def test_the_least_expected_waiting_is_lost() -> None:
    often, seldom = idle("often", arrivals_per_s=1.0), idle("seldom", arrivals_per_s=0.001)
    slow = idle("slow", arrivals_per_s=0.002, restore_s=60.0)
    assert names(evict([often, seldom, slow], GIB)) == ["seldom"]
    assert names(evict([often, slow], GIB)) == ["slow"], "0.12 s of waiting a second against 3"
    dear = dataclasses.replace(slow, weight=100.0)
    assert names(evict([often, dear], GIB)) == ["often"]


def test_bytes_count_as_well() -> None:
    large, small = idle("large", 4 * GIB, arrivals_per_s=0.03), [idle(f"s{i}", arrivals_per_s=0.01) for i in range(4)]
    assert names(evict([large, *small], 4 * GIB)) == ["large"], "0.03 against four times 0.01"
    assert names(evict([large, *small], 2 * GIB)) == ["s0", "s1"]
    assert evict([large, *small], 9 * GIB) is None, "not even all of them"
    assert evict([large], 0) == ()
    assert len(evict([idle(f"x{i}", 100 * MIB + i) for i in range(9)], 100 * MIB) or ()) == 1, (
        "one of equal size is enough"
    )


def test_parking_is_chosen_where_it_frees_enough() -> None:
    parks = idle("parks", 3 * GIB, kv_bytes=2 * GIB)
    [one] = list(evict([parks], GIB) or ())
    assert (one.how, one.frees_bytes) == ("park", 2 * GIB)
    [one] = list(evict([parks], 3 * GIB) or ())
    assert (one.how, one.frees_bytes) == ("stop", 3 * GIB)
    parked = dataclasses.replace(parks, replica_id="parked", standing="parked", holds_bytes=GIB, kv_bytes=0)
    assert names(evict([parked, dataclasses.replace(IDLE, arrivals_per_s=0.01)], GIB)) == ["parked"]


@pytest.mark.parametrize(
    "facts",
    [
        {"has_work": True},
        {"has_work": None},
        {"may_go": False},
        {"standing": "coming"},
        {"standing": "leaving"},
        {"idle_s": SERVED_REST_S / 2},
        {"idle_s": 900.0, "ready_for_s": UNSERVED_REST_S / 2},
    ],
    ids=["works", "nobody knows", "its minimum", "is coming", "is leaving", "has just served", "has served nobody yet"],
)
def test_who_stays(facts: dict[str, Any]) -> None:
    assert evict([dataclasses.replace(IDLE, **facts)], GIB) is None


def test_one_more_of_what_is_there_already_takes_only_what_has_long_been_idle() -> None:
    assert evict([dataclasses.replace(IDLE, idle_s=20.0)], GIB, is_first=False) is None
    assert evict([IDLE], GIB, is_first=False) is not None


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8), st.booleans()), max_size=7),
    st.integers(1, 120),
)
def test_no_other_choice_loses_less(drawn: list[tuple[int, int, bool]], missing: int) -> None:
    there = [
        idle(f"r{at}", size * 100 * MIB, arrivals_per_s=rate / 8, kv_bytes=size * 50 * MIB if parks else 0)
        for at, (size, rate, parks) in enumerate(drawn)
    ]
    chosen = evict(there, missing * 100 * MIB)
    ways: list[list[tuple[str, int, float] | None]] = [
        [None, ("stop", r.holds_bytes, r.arrivals_per_s * r.restore_s)] for r in there
    ]
    for each, resident in zip(ways, there, strict=True):
        if resident.kv_bytes:
            each.append(("park", resident.kv_bytes, resident.arrivals_per_s * resident.unpark_s))
    others = [
        (sum(way[1] for way in choice if way), sum(way[2] for way in choice if way))
        for choice in itertools.product(*ways)
    ]
    assert (chosen is None) == all(frees < missing * 100 * MIB for frees, _ in others)
    if chosen is not None:
        assert sum(each.frees_bytes for each in chosen) >= missing * 100 * MIB
        assert len(names(chosen)) == len(set(names(chosen)))
        # bytes are counted in sixty-fourths of what is missing: as good as any that frees one more for each replica
        plenty = missing * 100 * MIB * (1 + (len(there) + 1) / UNITS)
        losses = [loss for frees, loss in others if frees >= plenty]
        assert not losses or sum(each.loss for each in chosen) <= min(losses) + 1e-6


def test_turns_go_to_who_has_been_there_longest() -> None:
    busy = [idle(f"b{s}", has_work=True, ready_for_s=float(s)) for s in (5, 40, 90)]
    found = turn(busy, GIB)
    assert found is not None and (found.replica_id, found.how) == ("b90", "turn")
    assert turn([dataclasses.replace(busy[2], weight=4.0), busy[1]], GIB) == turn([busy[1]], GIB)
    assert turn([dataclasses.replace(busy[2], may_go=False), busy[0]], GIB) is None
    assert busy[0].ready_for_s is not None and busy[0].ready_for_s < TURN_S


def test_what_is_long_idle_is_expected_less() -> None:
    assert arrivals_per_s(None) == 0.0 < arrivals_per_s(3600.0) < arrivals_per_s(10.0) <= arrivals_per_s(0.0) == 1.0
