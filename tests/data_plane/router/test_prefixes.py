"""What the index says it knows, against a model that keeps every set as it is told."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from data_plane.router.prefixes import PrefixIndex

REPLICAS = ("a", "b", "c")
CHAINS = tuple(
    (1, 10 + first, 100 + 10 * first + second, *(1000 + 100 * first + 10 * second + deep for deep in range(5)))
    for first in range(2)
    for second in range(3)
)
PARENT = {name: before for chain in CHAINS for before, name in zip((0, *chain), chain, strict=False)}


@dataclass
class Known:
    """One replica as the reports and routings say."""

    held: set[int] = field(default_factory=set[int])
    expected: dict[int, float] = field(default_factory=dict[int, float])


class Books(RuleBasedStateMachine):
    """Reports keep to what runners do: stored from the beginning, evicted from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.model = {replica: Known() for replica in REPLICAS}
        self.now = 0.0

    @rule(replica=st.sampled_from(REPLICAS), chain=st.sampled_from(CHAINS), length=st.integers(0, 8))
    def store(self, replica: str, chain: tuple[int, ...], length: int) -> None:
        self.index.store(replica, chain[:length])
        self.model[replica].held.update(chain[:length])
        for name in chain[:length]:
            self.model[replica].expected.pop(name, None)

    @rule(replica=st.sampled_from(REPLICAS), name=st.sampled_from(sorted(PARENT)))
    def evict(self, replica: str, name: int) -> None:
        known = self.model[replica]
        gone = [one for one in known.held if name in _upwards(one)]
        if all(name not in _upwards(one) for one in known.expected):
            self.index.evict(replica, gone)
            known.held.difference_update(gone)

    @rule(replica=st.sampled_from(REPLICAS), chain=st.sampled_from(CHAINS), keep=st.integers(0, 8))
    def replace(self, replica: str, chain: tuple[int, ...], keep: int) -> None:
        known = self.model[replica]
        first_expected = min((chain.index(one) for one in known.expected if one in chain), default=8)
        if all(one in chain for one in known.expected) and keep <= first_expected:
            names = chain[: max(keep, first_expected if known.expected else 0)]
            self.index.replace(replica, names)
            known.held = set(names)

    @rule(replica=st.sampled_from(REPLICAS))
    def forget(self, replica: str) -> None:
        self.index.forget(replica)
        self.model[replica] = Known()

    @rule(replica=st.sampled_from(REPLICAS), chain=st.sampled_from(CHAINS), length=st.integers(1, 8))
    def expect(self, replica: str, chain: tuple[int, ...], length: int) -> None:
        self._pass(0.0)
        self.index.expect(replica, chain[:length], self.now + 10.0)
        known = self.model[replica]
        known.expected.update((one, self.now + 10.0) for one in chain[:length] if one not in known.held)

    @rule(seconds=st.floats(0.1, 6.0))
    def wait(self, seconds: float) -> None:
        self._pass(seconds)

    @invariant()
    def agrees(self) -> None:
        for chain in CHAINS:
            want = {replica: self._leading(replica, chain) for replica in REPLICAS}
            assert self.index.match(chain, self.now) == {one: held for one, held in want.items() if held}
        for replica, known in self.model.items():
            assert self.index.known(replica) == len(known.held)
        self.index.check()

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for known in self.model.values():
            known.expected = {one: until for one, until in known.expected.items() if until > self.now}

    def _leading(self, replica: str, chain: tuple[int, ...]) -> int:
        known = self.model[replica]
        here = (one in known.held or one in known.expected for one in chain)
        return next((at for at, is_here in enumerate(here) if not is_here), len(chain))


def _upwards(name: int) -> set[int]:
    found = set[int]()
    while name:
        found.add(name)
        name = PARENT[name]
    return found


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestBooks = Books.TestCase


def test_a_bit_is_used_again_only_when_nothing_of_its_last_owner_is_left() -> None:
    index = PrefixIndex()
    for number in range(50):
        index.store(f"replica-{number}", range(3_000))
        index.expect(f"replica-{number}", range(3_000, 3_500), until=100.0)
        index.forget(f"replica-{number}")
        index.store("stays", range(10))
        assert index.match(range(3_500), 1.0) == {"stays": 10}
    index.store("new", [0, 1])
    assert index.match(range(10), 200.0) == {"stays": 10, "new": 2}
    index.check()


def test_what_does_not_fit_is_not_learned() -> None:
    index = PrefixIndex(most_per_replica=100)
    index.store("a", range(1_000))
    assert index.known("a") == 100
    assert index.match(range(1_000), 0.0) == {"a": 100}
    index.evict("a", range(50, 1_000))
    index.store("a", range(50, 60))
    assert index.match(range(1_000), 0.0) == {"a": 60}
    index.check()


def test_what_was_sent_counts_until_it_is_reported_or_its_time_is_over() -> None:
    index = PrefixIndex()
    index.expect("a", [1, 2, 3], until=10.0)
    index.expect("b", [1, 2], until=10.0)
    assert index.match([1, 2, 3, 4], 9.0) == {"a": 3, "b": 2}
    index.store("a", [1, 2])
    assert index.match([1, 2, 3, 4], 11.0) == {"a": 2}
    index.expect("a", [1, 2, 3], until=20.0)
    index.expect("a", [1, 2, 3], until=30.0)
    assert index.match([1, 2, 3], 25.0) == {"a": 3}
    assert index.match([1, 2, 3], 31.0) == {"a": 2}
    index.check()
