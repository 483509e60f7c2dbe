"""The block pool: books that balance under any sequence of calls, and what is kept goes last, the stalest first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.engine.blocks import BlockPool


def test_blank_blocks_go_first_and_then_those_kept_that_were_free_longest() -> None:
    pool = BlockPool(6, 16)
    reused: list[int] = []
    pool.on_reuse = reused.append
    first, second = pool.allocate(3), pool.allocate(2)
    assert first == [0, 1, 2]
    for block in (*first, *second):
        pool.keep(block)
    pool.free(second)
    pool.free(first)
    assert pool.allocate(1) == [5]
    assert reused == []
    # the end of what was freed earlier, then its beginning
    assert pool.allocate(3) == [second[1], second[0], first[2]]
    assert reused == [second[1], second[0], first[2]]
    pool.check([[5], second, [first[2]]])


def test_a_shared_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2, 16)
    blocks = pool.allocate(1)
    pool.keep(blocks[0])
    pool.share(blocks)
    pool.free(blocks)
    assert (pool.num_free, pool.is_held(0)) == (1, True)
    pool.free(blocks)
    assert (pool.num_free, pool.is_held(0)) == (2, False)
    pool.share(blocks)
    assert pool.num_free == 1
    assert pool.allocate(1) == [1]
    pool.check([blocks, [1]])


def test_what_somebody_will_want_soon_goes_last() -> None:
    pool = BlockPool(5, 16)
    first, second = pool.allocate(3), pool.allocate(2)
    for block in (*first, *second):
        pool.keep(block)
    pool.free(first[:2])
    pool.free(second)
    pool.touch(first)  # one of them is held, and stays so
    assert pool.allocate(4) == [second[1], second[0], first[1], first[0]]
    pool.check([first, second])


def test_what_is_dropped_is_blank_again() -> None:
    pool = BlockPool(2, 16)
    blocks = pool.allocate(2)
    for block in blocks:
        pool.keep(block)
    pool.free(blocks[:1])
    pool.drop(blocks[0])
    pool.drop(blocks[1])
    pool.free(blocks[1:])
    pool.on_reuse = lambda block: pytest.fail(f"block {block} holds nothing")
    pool.check([pool.allocate(2)])


def test_more_than_is_free_is_refused_and_changes_nothing() -> None:
    pool = BlockPool(4, 16)
    held = pool.allocate(3)
    with pytest.raises(ValueError, match="2 blocks are wanted and 1 are free"):
        pool.allocate(2)
    pool.check([held])


CALLS = st.sampled_from(["allocate", "free", "keep", "share", "touch", "drop"])


@given(st.integers(1, 30), st.lists(st.tuples(st.sampled_from("abcdef"), CALLS, st.integers(1, 9)), max_size=80))
@settings(max_examples=300, deadline=None)
def test_books_balance_whatever_happens(num_blocks: int, calls: list[tuple[str, str, int]]) -> None:
    pool = BlockPool(num_blocks, 16)
    held: dict[str, list[int]] = {}
    kept: set[int] = set()
    pool.on_reuse = kept.remove
    for owner, call, count in calls:
        mine = held.get(owner, [])
        if call == "allocate" and count <= pool.num_free:
            in_use = {block for blocks in held.values() for block in blocks}
            got = pool.allocate(count)
            assert not in_use & set(got), "a block in use is handed out"
            assert not kept & set(got), "a kept block was handed out and nobody heard of it"
            held[owner] = mine + got
        elif call == "free":
            pool.free(held.pop(owner, []))
        elif call == "keep":
            kept.update(mine[:count])
            for block in mine[:count]:
                pool.keep(block)
        elif call == "share":
            wanted = [block for block in sorted(kept) if block not in mine][:count]
            pool.share(wanted)
            held[owner] = mine + wanted
        elif call == "touch":
            pool.touch(sorted(kept)[:count])
        elif call == "drop":
            for block in sorted(kept)[:count]:
                pool.drop(block)
                kept.remove(block)
        pool.check(list(held.values()))
    for blocks in held.values():
        pool.free(blocks)
    assert pool.num_free == num_blocks
    pool.check([])
