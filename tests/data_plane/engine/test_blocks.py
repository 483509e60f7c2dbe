"""The block pool: books that balance under any sequence of calls, and blocks that lie side by side where they can."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.engine.blocks import BlockPool


def test_one_owner_grows_in_place_while_others_come_and_go() -> None:
    pool = BlockPool(64, 16)
    for owner in ("a", "b", "c"):
        pool.allocate(owner, 2, expected=10)
    for _ in range(8):
        for owner in ("a", "b", "c"):
            pool.allocate(owner, 1, expected=10)
    assert all(pool.table(owner).is_contiguous for owner in "abc")
    assert pool.num_free == 64 - 30
    pool.free("b")
    assert pool.allocate("d", 10, expected=10).is_contiguous
    pool.check()


def test_a_headroom_is_lent_when_nothing_else_is_free() -> None:
    pool = BlockPool(8, 16)
    pool.allocate("greedy", 1, expected=8)
    assert pool.num_free == 7
    lent = pool.allocate("late", 4, expected=4)
    assert lent.ids == [4, 5, 6, 7]
    pool.allocate("greedy", 3, expected=8)
    assert pool.table("greedy").ids == [0, 1, 2, 3]
    pool.check()


def test_scattered_blocks_are_called_scattered() -> None:
    pool = BlockPool(6, 16)
    for owner in ("a", "b", "c"):
        pool.allocate(owner, 2, expected=2)
    pool.free("a")
    pool.free("c")
    table = pool.allocate("d", 4, expected=4)
    assert sorted(table.ids) == [0, 1, 4, 5]
    assert not table.is_contiguous
    pool.check()


def test_more_than_is_free_is_refused_and_changes_nothing() -> None:
    pool = BlockPool(4, 16)
    pool.allocate("a", 3)
    with pytest.raises(ValueError, match="2 blocks are wanted and 1 are free"):
        pool.allocate("b", 2)
    pool.check()
    assert pool.table("b").ids == []
    with pytest.raises(KeyError):
        pool.free("b")


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9), st.integers(0, 30)), max_size=80),
)
@settings(max_examples=300, deadline=None)
def test_books_balance_whatever_happens(num_blocks: int, calls: list[tuple[str, int, int]]) -> None:
    """count 0 frees; anything else allocates, where there is room."""
    pool = BlockPool(num_blocks, 16)
    held: dict[str, list[int]] = {}
    for owner, count, expected in calls:
        if count == 0 and owner in held:
            pool.free(owner)
            del held[owner]
        elif 0 < count <= pool.num_free:
            before = list(held.get(owner, []))
            held[owner] = list(pool.allocate(owner, count, expected).ids)
            assert held[owner][: len(before)] == before, "blocks in use never move"
            assert len(held[owner]) == len(before) + count
        pool.check()
    blocks = [block for ids in held.values() for block in ids]
    assert len(set(blocks)) == len(blocks)
    for owner in held:
        pool.free(owner)
    assert pool.num_free == num_blocks
    pool.check()
