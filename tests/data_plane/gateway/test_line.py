"""The line by itself: no order of events unbalances it, every party finds room, and places go round fairly."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.gateway.fairness import Account, Claim, Ledger
from data_plane.gateway.line import SHARE, TURNS, Bounds, Line, Place
from data_plane.gateway.pace import Pace, retry_after_s

WIDE = Bounds(10_000, 1 << 30)


class Counter:
    """A line with a ledger whose accounts stay open until the test ends."""

    def __init__(self, bounds: Bounds = WIDE) -> None:
        self.line: Line[Place] = Line(bounds)
        self.ledger = Ledger()
        self.open: list[Account] = []
        self.clock = 0.0

    def place(self, party: str, rank: int = 0, tokens: int = 10, size: int = 1, latest: float = inf) -> Place:
        self.clock += 1
        self.open.append(self.ledger.open(party))
        return Place(Claim(self.open[-1], rank, tokens), self.clock, size, latest=latest)

    def push(self, party: str, rank: int = 0, tokens: int = 10, size: int = 1, latest: float = inf) -> Place | None:
        """The place, or None where there was no room for it."""
        place = self.place(party, rank, tokens, size, latest)
        if self.line.fault(place) is not None:
            return None
        self.line.push(place)
        return place

    def check(self) -> None:
        self.line.check()
        self.ledger.check()


STEPS = st.lists(
    st.tuples(st.sampled_from(["push", "pop", "drop"]), st.sampled_from("abc"), st.integers(-1, 1), st.integers(1, 40)),
    max_size=80,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_no_order_of_events_unbalances_it(steps: list[tuple[str, str, int, int]]) -> None:
    counter = Counter(Bounds(12, 300))
    for what, party, rank, size in steps:
        if what == "push":
            counter.push(party, rank, tokens=size, size=size)
        elif what == "pop" and counter.line:
            head = counter.line.head()
            assert counter.line.pop() is head and head.claim.is_charged
        elif what == "drop" and counter.line:
            place = list(counter.line)[size % len(counter.line)]
            assert counter.line.remove(place) and not counter.line.remove(place)
        counter.check()
        assert len(counter.line) <= 12 and counter.line.size_bytes <= 300
    while counter.line:
        counter.line.pop()
    assert counter.line.size_bytes == 0
    for account in counter.open:
        counter.ledger.close(account)
    assert counter.ledger.is_idle


@given(st.integers(4, 400), st.integers(1, 5))
def test_one_party_never_fills_it_and_each_later_one_finds_room(most: int, parties: int) -> None:
    counter = Counter(Bounds(most, 1 << 30))
    admitted: list[int] = []
    for party in range(parties):
        admitted.append(sum(counter.push(str(party)) is not None for _ in range(most + 1)))
    assert admitted[0] <= SHARE * most / (SHARE + 1) + 1
    assert admitted[0] >= most // 2, "alone it may have more than half"
    free = most
    for mine in admitted:
        assert mine >= min(1, free), "whoever comes finds room while there is any"
        free -= mine
    counter.check()


def test_what_is_said_of_a_line_without_room() -> None:
    counter = Counter(Bounds(8, 1000))
    while counter.push("a"):
        pass
    assert counter.line.fault(counter.place("a")) == "share"
    assert counter.line.fault(counter.place("b")) is None
    assert counter.line.fault(counter.place("b", size=1000)) == "full"
    while counter.push("b") or counter.push("c") or counter.push("d"):
        pass
    assert counter.line.fault(counter.place("e")) == "full"


def test_oldest_first_within_a_party_and_high_before_low() -> None:
    counter = Counter()
    order = [counter.push("a", rank) for rank in (1, 0, 1, 0, -1)]
    popped = [counter.line.pop() for _ in range(5)]
    assert popped == [order[4], order[1], order[3], order[0], order[2]]


def test_only_ones_own_may_be_let_go_before_the_head_and_never_at_the_oldest_ones_turn() -> None:
    counter = Counter()
    first = counter.push("a", tokens=1)
    second, other, _urgent = counter.push("a", tokens=1), counter.push("b"), counter.push("a", rank=-1)
    assert counter.line.ahead(9) == [_urgent]
    counter.line.pop()
    assert counter.line.ahead(9) == [other] and counter.line.ahead(0) == []
    counter.line.pop()
    assert counter.line.ahead(9) == [first, second] and counter.line.ahead(1) == [first]
    assert second is not None
    counter.line.take(second)
    assert second.claim.is_charged and list(counter.line) == [first]
    for _ in range(TURNS - 4):
        counter.push("a")
        counter.line.pop()
    later = [counter.push("a") for _ in range(2)]
    assert counter.line.ahead(9) == [counter.line.oldest] and len(later) == 2
    counter.check()


def test_who_is_too_late_lets_those_go_first_who_are_not_and_goes_all_the_same() -> None:
    counter = Counter()
    late, later, soon, never = (counter.push("a", latest=latest) for latest in (3.0, 4.0, 9.0, inf))
    assert counter.line.head() is late and counter.line.ahead(9, 5.0) == [soon, never]
    assert counter.line.head(3.0) is late, "its turn comes just in time"
    assert [counter.line.pop(5.0), counter.line.pop(9.5)] == [soon, never]
    assert [counter.line.pop(9.5), counter.line.pop(9.5)] == [late, later], "all are late: the oldest first"
    counter.check()


@given(st.integers(0, 3 * TURNS))
def test_one_that_is_late_waits_no_longer_than_for_the_turns_of_those_before_it(before: int) -> None:
    counter = Counter()
    late = [counter.push("a", latest=0.0) for _ in range(before + 1)][-1]
    for popped in range(1, (before + 1) * TURNS + 1):
        counter.push("a")
        if counter.line.pop(1.0) is late:
            assert popped == (before + 1) * TURNS
            return
    raise AssertionError("it had no turn")


def test_a_place_given_back_keeps_its_turn() -> None:
    counter = Counter()
    first, second = counter.push("a"), counter.push("a")
    assert counter.line.pop() is first
    assert first is not None
    counter.line.push(first)
    assert [counter.line.pop(), counter.line.pop()] == [first, second]


def test_nothing_waits_for_ever_behind_higher_ranks() -> None:
    counter = Counter()
    low = counter.push("low", rank=1)
    for _ in range(TURNS):
        counter.push("high", rank=-1)
    popped = [counter.line.pop() for _ in range(TURNS)]
    assert low in popped


@settings(max_examples=50, deadline=None)
@given(st.integers(1000, 4000), st.integers(1000, 4000))
def test_places_go_by_tokens(small: int, large: int) -> None:
    """Two parties that always wait, one with larger requests: what they are served differs by a few requests."""
    counter = Counter()
    for _ in range(100):
        counter.push("small", tokens=small)
        counter.push("large", tokens=large)
    for _ in range(100):
        counter.line.pop()
    shares = counter.ledger.shares()
    assert abs(shares["small"] - shares["large"]) <= 3 * max(small, large)


def test_nobody_saves_up_by_idling() -> None:
    ledger = Ledger()
    busy = ledger.open("busy")
    busy.served = 5000
    late = ledger.open("late")
    assert late.served == 5000, "level with the least served of those that are here"
    late.served += 100
    ledger.close(late)
    assert ledger.open("late").served == 5100, "and what it had above that is not forgotten"
    for account in (busy, late):
        ledger.close(account)
    assert ledger.is_idle


def test_a_claim_is_charged_once_and_settled_with_what_it_took() -> None:
    claim = Claim(tokens=100)
    claim.charge()
    claim.charge()
    assert claim.account.served == 100
    claim.settle(30)
    assert claim.account.served == 30
    unserved = Claim(tokens=100)
    unserved.settle(0)
    assert unserved.account.served == 0, "what never had a place is not charged"


def test_the_pace_follows_returns_and_their_absence() -> None:
    pace = Pace()
    assert pace.wait_s(10, 0.0) is None
    for second in range(11):
        pace.note(float(second))
    ten = pace.wait_s(10, 10.0)
    assert ten is not None and 8 <= ten <= 12, "one place comes free each second"
    later = pace.wait_s(10, 100.0)
    assert later is not None and later > 5 * ten, "nothing has come free since"


@given(st.floats(0, 1e6), st.floats(0, 1))
def test_retry_after_is_within_what_clients_are_told(expected_s: float, spread: float) -> None:
    assert 1 <= retry_after_s(expected_s, spread) <= 120
    assert retry_after_s(expected_s, spread) >= min(120, expected_s)
