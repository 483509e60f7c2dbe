"""The diff as a property: whatever is desired and whatever runs, the books stay right."""

from hypothesis import given
from hypothesis import strategies as st

from data_plane.node.diff import Action, Running, diff
from data_plane.wire.fleet import DesiredReplica, Intent, ReplicaSpec

IDS = ("a", "b", "c")
SPEC = ReplicaSpec(model="m", artifact="sha256:" + "0" * 64)
INTENTS: tuple[Intent, ...] = ("run", "park", "drain", "stop")

wanted = st.lists(
    st.builds(
        DesiredReplica,
        st.sampled_from(IDS),
        st.just("chat"),
        st.integers(1, 3),
        st.sampled_from(INTENTS),
        st.just(SPEC),
    ),
    max_size=5,
)
held = st.dictionaries(
    st.sampled_from(IDS),
    st.tuples(st.integers(1, 3), st.sampled_from(("up", "parked", "draining", "stopping", "ended"))),
).map(lambda books: [Running(name, *entry) for name, entry in books.items()])


def play(running: list[Running], actions: list[Action]) -> list[Running]:
    """A model of the fleet: does the actions, and fails where one of them cannot be done."""
    books = {replica.id: replica for replica in running}
    for action in actions:
        current = books.get(action.id)
        match action.verb:
            case "start" | "settle":
                assert current is None, "two processes for one replica id"
                assert action.desired is not None
                condition = "up" if action.verb == "start" else "ended"
                books[action.id] = Running(action.id, action.desired.generation, condition)
            case "forget":
                assert current is not None and current.condition == "ended", "forgot a living process"
                del books[action.id]
            case "park" | "unpark":
                assert current is not None and current.condition == ("up" if action.verb == "park" else "parked")
                books[action.id] = Running(action.id, current.generation, "parked" if action.verb == "park" else "up")
            case verb:
                assert current is not None and current.condition in ("up", "parked", "draining")
                books[action.id] = Running(action.id, current.generation, "draining" if verb == "drain" else "stopping")
    return list(books.values())


def end_all_ending(running: list[Running]) -> list[Running]:
    return [Running(r.id, r.generation, "ended") if r.condition in ("draining", "stopping") else r for r in running]


@given(wanted, held)
def test_every_action_can_be_done_and_a_second_diff_is_empty(
    desired: list[DesiredReplica], running: list[Running]
) -> None:
    after = play(running, diff(desired, running))
    assert diff(desired, after) == []


@given(wanted, held)
def test_it_converges(desired: list[DesiredReplica], running: list[Running]) -> None:
    state = running
    for _ in range(4):
        state = end_all_ending(play(state, diff(desired, state)))
    assert diff(desired, state) == []
    newest: dict[str, DesiredReplica] = {}
    for want in desired:
        if want.id not in newest or newest[want.id].generation < want.generation:
            newest[want.id] = want
    books = {replica.id: replica for replica in state}
    assert set(books) == set(newest)
    for replica_id, want in newest.items():
        assert books[replica_id].generation >= want.generation
        if want.intent != "run" and books[replica_id].generation == want.generation:
            resting = ("parked", "ended") if want.intent == "park" else ("ended",)
            assert books[replica_id].condition in resting


@given(wanted, held)
def test_an_ended_generation_never_starts_again(desired: list[DesiredReplica], running: list[Running]) -> None:
    ended = {(r.id, r.generation) for r in running if r.condition == "ended"}
    started = {(a.id, a.desired.generation) for a in diff(desired, running) if a.verb == "start" and a.desired}
    assert not ended & started


def test_a_late_command_of_an_older_generation_changes_nothing() -> None:
    stale = DesiredReplica("a", "chat", 1, "stop", SPEC)
    assert diff([stale], [Running("a", 2, "up")]) == []


def test_what_nobody_wants_is_stopped_then_forgotten() -> None:
    assert diff([], [Running("a", 1, "up")]) == [Action("stop", "a")]
    assert diff([], [Running("a", 1, "stopping")]) == []
    assert diff([], [Running("a", 1, "ended")]) == [Action("forget", "a")]
