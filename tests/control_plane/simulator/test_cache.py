"""The simulated cache against a list that is kept by hand."""

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.simulator.cache import BlockCache

PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=6)


def chain_of(path: list[int]) -> tuple[int, ...]:
    """Names that are equal where the path to them is."""
    name, names = 1, list[int]()
    for turn in path:
        name = 2 * name + turn
        names.append(name)
    return tuple(names)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(PATHS, max_size=25))
def test_least_recently_used_goes_first_and_the_end_before_the_beginning(capacity: int, paths: list[list[int]]) -> None:
    cache = BlockCache(capacity)
    used: dict[int, tuple[int, int]] = {}
    for time, path in enumerate(paths):
        chain = chain_of(path)
        held = next((at for at, name in enumerate(chain) if name not in used), len(chain))
        assert cache.match(chain) == held
        new, gone = cache.insert(chain)
        assert list(new) == list(chain[held:capacity])
        # of what was used at the same time, what is deeper is older
        used.update((name, (time, -depth)) for depth, name in enumerate(chain[:capacity]))
        expected = sorted(used, key=lambda name: used[name])[: max(0, len(used) - capacity)]
        assert gone == expected
        for name in gone:
            del used[name]
        assert all(name in cache for name in used) and len(cache) == len(used)
        cache.check()


def test_without_a_bound_nothing_goes() -> None:
    cache = BlockCache(None)
    assert cache.insert(range(1_000))[1] == []
    assert cache.match(range(2_000)) == 1_000
