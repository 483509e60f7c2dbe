"""The router's parts by themselves: choice, leases, table and the cutting of event streams."""

import random

from hypothesis import given
from hypothesis import strategies as st

from data_plane.router.choose import Candidate, choose
from data_plane.router.lease import InFlight, Lease
from data_plane.router.sse import EventCutter, comment, event
from data_plane.router.table import RouteTable
from data_plane.wire.routes import EndpointRoute, GatewayState, ReplicaRoute

CANDIDATES = st.lists(
    st.builds(
        Candidate, st.text("abc", min_size=1, max_size=3), st.integers(0, 64), st.integers(0, 200)
    ),
    max_size=8,
    unique_by=lambda one: one.replica_id,
)  # fmt: skip


@given(CANDIDATES, st.randoms())
def test_choice_is_least_loaded_and_order_does_not_matter(candidates: list[Candidate], order: random.Random) -> None:
    choice = choose(candidates)
    assert (choice is None) == (not candidates)
    if choice is None:
        return
    chosen = next(one for one in candidates if one.replica_id == choice.replica_id)
    for other in candidates:
        assert chosen.in_flight / max(1, chosen.slots) <= other.in_flight / max(1, other.slots)
    shuffled = list(candidates)
    order.shuffle(shuffled)
    assert choose(shuffled) == choice


def test_choice_prefers_room_in_proportion() -> None:
    choice = choose([Candidate("small", 2, 1), Candidate("large", 8, 3)])
    assert choice is not None
    assert (choice.replica_id, choice.reason) == ("large", "least_loaded")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 50)), max_size=60))
def test_lease_books_balance(steps: list[tuple[bool, int, int]]) -> None:
    returned: list[str] = []
    book = InFlight(returned.append)
    held: list[Lease] = []
    given_back = 0
    for borrow, replica, pick in steps:
        if borrow:
            endpoint = f"e{replica % 2}"
            held.append(book.borrow(endpoint, ReplicaRoute(f"r{replica}", "http://x", "t", 1)))
        elif held:
            lease = held.pop(pick % len(held))
            lease.give_back()
            lease.give_back()
            given_back += 1
        book.check()
        assert book.total == len(held)
        for number in range(4):
            mine = sum(lease.replica.id == f"r{number}" for lease in held)
            assert book.of_replica(f"r{number}") == mine
    assert len(returned) == given_back


def test_lease_is_given_back_by_an_error() -> None:
    book = InFlight()
    try:
        with book.borrow("e", ReplicaRoute("r", "http://x", "t", 1)):
            assert book.of_endpoint("e") == 1
            raise RuntimeError
    except RuntimeError:
        assert book.total == 0
    book.check()


def route(*replicas: str, id: str = "e", tenant: str = "t", **fields: float) -> EndpointRoute:
    ready = tuple(ReplicaRoute(name, f"http://{name}", "t", 1) for name in replicas)
    return EndpointRoute(id, tenant, "chat", "m", "live", 0, 10, ready, eta_s=fields.get("eta_s"))


def test_table_tells_what_changed_and_keeps_tenants_apart() -> None:
    table = RouteTable()
    assert not table.received
    assert table.update(GatewayState("1", (route("a"), route("b", id="f", tenant="u")), ()), 0.0) in (
        ["e", "f"],
        ["f", "e"],
    )
    assert table.received
    assert table.update(GatewayState("2", (route("a"), route("c", id="f", tenant="u")), ()), 1.0) == ["f"]
    found, other = table.find("t", "chat"), table.find("u", "chat")
    assert found is not None
    assert other is not None
    assert (found.id, other.id, table.find("v", "chat")) == ("e", "f", None)
    assert table.update(GatewayState("3", (route("a"),), ()), 2.0) == ["f"]
    assert table.get("f") is None


def test_avoided_replicas_come_back_by_time_or_by_a_change() -> None:
    table = RouteTable()
    table.update(GatewayState("1", (route("a", "b"),), ()), 0.0)
    table.avoid("a", until=5.0)
    assert [one.id for one in table.usable("e", 4.9)] == ["b"]
    assert [one.id for one in table.usable("e", 5.0)] == ["a", "b"]
    table.avoid("a", until=50.0)
    table.update(GatewayState("2", (route("a", "b"), route("z", id="other")), ()), 6.0)
    assert [one.id for one in table.usable("e", 7.0)] == ["b"], "another endpoint's change says nothing of this one"
    table.update(GatewayState("3", (route("a", "c"),), ()), 8.0)
    assert [one.id for one in table.usable("e", 8.0)] == ["c"], "that others come and go says nothing of this one"
    table.update(GatewayState("4", (route("c"),), ()), 9.0)
    table.update(GatewayState("5", (route("a"),), ()), 9.0)
    assert [one.id for one in table.usable("e", 9.0)] == ["a"]
    table.avoid("a", until=50.0)
    table.avoid("a", until=0.0)
    assert [one.id for one in table.usable("e", 9.0)] == ["a"]
    assert table.usable("gone", 8.0) == ()


def test_eta_counts_down() -> None:
    table = RouteTable()
    table.update(GatewayState("1", (route(eta_s=10.0),), ()), 100.0)
    assert (table.eta_s("e", 104.0), table.eta_s("e", 200.0), table.eta_s("gone", 0.0)) == (6.0, 0.0, None)


EVENTS = st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8")).map(str.encode), max_size=8)


@given(EVENTS, st.booleans(), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_cutter_passes_whole_events_however_they_arrive(texts: list[bytes], done: bool, sizes: list[int]) -> None:
    whole = b"".join(event(text) for text in texts) + (b"data: [DONE]\n\n" if done else b"")
    stream = whole + b'data: {"half'
    cutter, passed, at = EventCutter(), b"", 0
    while at < len(stream):
        size = sizes[at % len(sizes)]
        piece = cutter.feed(stream[at : at + size])
        assert piece == b"" or piece.endswith(b"\n\n")
        passed, at = passed + piece, at + size
    assert passed == whole
    assert cutter.done == (done or bool(texts and texts[-1] == b"[DONE]"))


def test_cutter_knows_an_error_event_from_text_about_errors() -> None:
    for chunk, failed in (
        (event(b'{"error":{"message":"x"}}'), True),
        (event(b"1") + event(b'{"error":{}}'), True),
        (event(b'{"error":{}}') + event(b"[DONE]"), False),
        (event(rb'{"text":"data: {\"error\""}'), False),
        (comment("waking"), False),
    ):
        cutter = EventCutter()
        cutter.feed(chunk)
        assert cutter.failed == failed, chunk


def test_cutter_bounds_an_event_without_end() -> None:
    cutter = EventCutter(most_pending_bytes=100)
    try:
        cutter.feed(b"data: " + b"x" * 200)
    except ValueError as error:
        assert "100 bytes" in str(error)
    else:
        raise AssertionError("an endless event was taken in")
