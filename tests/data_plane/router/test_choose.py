"""The choice on cases made by hand: when a prefix is worth waiting for, and when it is not."""

import pytest

from data_plane.router.choose import Candidate, Want, choose
from data_plane.router.prefixes import PrefixIndex

RATE = 1000.0


def replica(name: str, pending: int = 0, running: int = 0, slots: int = 8) -> Candidate:
    """One that reports: `pending` prompt tokens at 1,000 a second, `running` requests."""
    return Candidate(name, slots, running, running, 0, pending, 0.0, RATE, 100.0)


def chosen(candidates: list[Candidate], want: Want) -> tuple[str, str]:
    """(replica, reason)."""
    choice = choose(candidates, want)
    assert choice is not None
    return choice.replica_id, choice.reason


def test_nobody_and_nobody_with_a_place() -> None:
    assert choose([]) is None
    assert choose([Candidate("a", 2, 2), Candidate("b", 1, 1)]) is not None


def test_the_only_one_is_told_what_it_holds() -> None:
    choice = choose([replica("a")], Want(prompt_tokens=1000, held={"a": 4}, chunk_tokens=100))
    assert choice is not None and (choice.reason, choice.matched_tokens) == ("only", 400)


def test_a_replica_that_holds_the_prompt_is_kept_to() -> None:
    want = Want(prompt_tokens=1000, held={"b": 9}, chunk_tokens=100)
    assert chosen([replica("a"), replica("b", pending=200, running=2), replica("c")], want) == ("b", "prefix")


def test_a_prefix_is_left_for_a_start_that_is_much_earlier() -> None:
    want = Want(prompt_tokens=1000, held={"b": 9}, chunk_tokens=100)
    assert chosen([replica("a"), replica("b", pending=60_000)], want) == ("a", "least_work")


def test_a_short_prefix_is_left_sooner_than_a_long_one() -> None:
    busy = [replica("a"), replica("b", pending=4_000, running=2)]
    assert chosen(busy, Want(prompt_tokens=4_000, held={"b": 1}, chunk_tokens=100))[0] == "a"
    assert chosen(busy, Want(prompt_tokens=4_000, held={"b": 39}, chunk_tokens=100))[0] == "b"


def test_nobody_waits_for_a_slot_where_a_free_one_is_sooner() -> None:
    full = [replica("a", running=1), replica("b", running=8)]  # an answer there ends in about 2.6 s
    assert chosen(full, Want(prompt_tokens=2_000, held={"b": 19}, chunk_tokens=100)) == ("a", "least_work")
    assert chosen(full, Want(prompt_tokens=4_000, held={"b": 39}, chunk_tokens=100)) == ("b", "prefix")
    with_slot = [replica("a", running=1), replica("b", running=7)]
    assert chosen(with_slot, Want(prompt_tokens=2_000, held={"b": 19}, chunk_tokens=100)) == ("b", "prefix")


def test_what_all_hold_decides_nothing() -> None:
    want = Want(prompt_tokens=1000, held={"a": 5, "b": 5, "c": 5}, chunk_tokens=100)
    assert chosen([replica("a", 500, 1), replica("b", 100, 1), replica("c", 500, 1)], want) == ("b", "least_work")


def test_of_two_holders_the_one_with_less_to_do_is_taken() -> None:
    want = Want(prompt_tokens=1000, held={"a": 9, "c": 9}, chunk_tokens=100)
    assert chosen([replica("a", 900, 3), replica("b"), replica("c", 100, 1)], want) == ("c", "prefix")


def test_least_work_is_tokens_times_batch() -> None:
    want = Want(prompt_tokens=1000)
    assert chosen([replica("a", 0, 6), replica("b", 500, 1)], want) == ("b", "least_work")
    assert chosen([replica("a", 0, 2), replica("b", 500, 1)], want) == ("a", "least_work")


def test_a_replica_without_a_place_costs_the_wait_for_one() -> None:
    want = Want(prompt_tokens=100, held={"a": 1}, chunk_tokens=64)
    assert chosen([replica("a", running=8), replica("b")], want)[0] == "b"


def test_a_slower_replica_has_more_to_do() -> None:
    slow = Candidate("a", 8, 0, 0, 0, 0, 0.0, 100.0, 10.0)
    assert chosen([slow, replica("b", pending=500)], Want(prompt_tokens=1000))[0] == "b"


@pytest.mark.parametrize(("session", "reason"), [(None, "ring"), ("s", "session")])
def test_without_reports_a_key_goes_to_the_same_replica_under_the_bound(session: str | None, reason: str) -> None:
    idle = [Candidate(name, 8, 0) for name in "abcd"]
    want = Want(1000, session, "prefix")
    first = choose(idle, want)
    assert first is not None and first.reason == reason
    assert choose(idle[::-1], want) == first
    loaded = [Candidate(one.replica_id, 8, 8 if one.replica_id == first.replica_id else 1) for one in idle]
    second = choose(loaded, want)
    assert second is not None and second.replica_id != first.replica_id


def test_a_session_of_short_prompts_stays_together_where_that_is_not_much_later() -> None:
    idle = [replica(name) for name in "abcd"]
    first = chosen(idle, Want(40, "s"))
    assert first[1] == "session"
    assert {chosen(idle, Want(tokens, "s")) for tokens in range(1, 60)} == {first}
    busy = [replica(one.replica_id, pending=5_000 if one.replica_id == first[0] else 0) for one in idle]
    assert chosen(busy, Want(40, "s"))[0] != first[0]


def test_of_many_a_prompt_looks_at_some_and_at_all_who_hold_it() -> None:
    index = PrefixIndex()
    index.store("r20", [1, 2, 3])
    many = [replica(f"r{number:02}", pending=10 * number) for number in range(40)]
    for last in range(10, 50):
        assert chosen(many, Want(400, held=index.match([1, 2, 3, last], 0.0), chunk_tokens=100)) == ("r20", "prefix")
        other = chosen(many, Want(400, held=index.match([last, 2], 0.0), chunk_tokens=100))
        assert other == (f"r{2 % 40:02}", "least_work")


def test_what_many_prompts_begin_with_is_left_as_soon_as_another_is_sooner() -> None:
    index = PrefixIndex()
    index.store("b", [1, 2, 3])
    busy = [replica("a"), replica("b", pending=3_500, running=1)]
    first, second, third = (
        chosen(busy, Want(500, held=index.match([1, 2, 3, other, other + 1], 0.0), chunk_tokens=100))
        for other in (10, 20, 10)
    )
    assert first == ("b", "prefix"), "as far as is known a conversation that goes on"
    assert second == ("a", "least_work")
    assert third == ("a", "least_work"), "by now it is known to be shared"


def test_the_order_of_candidates_does_not_matter() -> None:
    some = [replica("a", 300, 1), replica("b"), replica("c"), replica("d", 100, 3)]
    for want in (Want(1000), Want(1000, held={"a": 3, "d": 3}), Want(1000, "s", "p")):
        assert choose(some, want) == choose(some[::-1], want)
