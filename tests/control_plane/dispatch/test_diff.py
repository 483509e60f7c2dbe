"""A node's report against what is desired of it."""

from hypothesis import given
from hypothesis import strategies as st

from control_plane.dispatch.diff import PICK_UP_S, Ended, Seen, Stray, Wanted, compare
from control_plane.endpoints.states import PHASES, may_become
from data_plane.wire.fleet import Intent, ObservedReplica, ReplicaPhase, StartFailure

ALIVE: st.SearchStrategy[ReplicaPhase] = st.sampled_from(
    [phase for phase in PHASES if phase not in ("stopped", "failed")]
)
INTENT: st.SearchStrategy[Intent] = st.sampled_from(["run", "park", "drain", "stop"])
IDS = st.lists(st.sampled_from("abcdef"), unique=True)


@given(st.data(), IDS, IDS)
def test_every_replica_is_judged_once_and_only_legally(
    data: st.DataObject, wanted_ids: list[str], seen_ids: list[str]
) -> None:
    wanted = [Wanted(i, 1, data.draw(ALIVE), data.draw(INTENT), data.draw(st.floats(0, 99))) for i in wanted_ids]
    observed = [ObservedReplica(i, data.draw(st.integers(1, 2)), data.draw(st.sampled_from(PHASES))) for i in seen_ids]
    changes = compare(wanted, observed)
    judged = [change.id for change in changes if not isinstance(change, Stray)]
    assert len(judged) == len(set(judged)) and set(judged) <= set(wanted_ids)
    status: dict[str, ReplicaPhase] = {want.id: want.status for want in wanted}
    for change in changes:
        if isinstance(change, Seen) and change.to is not None:
            assert may_become(status[change.id], change.to)
        if isinstance(change, Ended) and change.failure is None:
            assert next(want for want in wanted if want.id == change.id).intent != "run"


def want(status: ReplicaPhase = "placing", intent: Intent = "run", placed_for_s: float = 0.0) -> Wanted:
    return Wanted("a", 1, status, intent, placed_for_s)


def test_one_that_the_agent_has_not_begun_yet_is_left_alone_for_a_while() -> None:
    assert compare([want()], []) == ()
    (late,) = compare([want(placed_for_s=PICK_UP_S + 1)], [])
    assert isinstance(late, Ended) and late.failure is not None and not late.failure.fatal


def test_one_that_was_there_and_is_gone_was_lost() -> None:
    (gone,) = compare([want("ready")], [])
    assert isinstance(gone, Ended) and gone.failure == StartFailure("The node no longer has this replica.", False)


def test_one_that_was_to_go_and_is_gone_ended_well() -> None:
    intents: tuple[Intent, ...] = ("drain", "stop")
    statuses: tuple[ReplicaPhase, ...] = ("placing", "loading", "ready", "draining")
    for intent in intents:
        for status in statuses:
            assert compare([want(status, intent)], []) == (Ended("a", None, None),)


def test_progress_is_a_move_and_an_old_report_is_not() -> None:
    loading = ObservedReplica("a", 1, "loading")
    assert compare([want("starting")], [loading]) == (Seen("a", loading, "loading"),)
    assert compare([want("ready")], [loading]) == (Seen("a", loading, None),)


def test_a_replica_of_another_generation_is_a_stranger() -> None:
    other = ObservedReplica("a", 2, "ready")
    changes = compare([want("ready")], [other])
    assert changes[1] == Stray("a") and isinstance(changes[0], Ended)


def test_the_agents_reason_is_kept_and_one_is_found_where_there_is_none() -> None:
    reason = StartFailure("no memory", True)
    assert compare([want("loading")], [ObservedReplica("a", 1, "failed", failure=reason)])[0] == Ended(
        "a", ObservedReplica("a", 1, "failed", failure=reason), reason
    )
    (stopped,) = compare([want("ready")], [ObservedReplica("a", 1, "stopped")])
    assert isinstance(stopped, Ended) and stopped.failure is not None


def test_a_replica_is_parked_and_runs_again_as_it_is_reported() -> None:
    parked, ready = ObservedReplica("a", 1, "parked"), ObservedReplica("a", 1, "ready")
    assert compare([want("ready", "park")], [parked]) == (Seen("a", parked, "parked"),)
    assert compare([want("parked", "run")], [ready]) == (Seen("a", ready, "ready"),)
    assert compare([want("parked", "park")], [parked]) == (Seen("a", parked, None),)
    assert compare([want("parked", "park")], []) == (Ended("a", None, None),), "nobody asked for it: no failure"
