"""The replica's moves, the endpoint's word and the circuit, against everything Hypothesis can think of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.endpoints import states
from control_plane.endpoints.states import Circuit, IllegalMove, ReplicaView
from data_plane.wire.fleet import Intent, ReplicaPhase

PHASE = st.sampled_from(states.PHASES)
VIEWS = st.lists(st.builds(ReplicaView, PHASE, st.sampled_from(("run", "park", "drain", "stop"))), max_size=6)


@given(st.lists(PHASE, max_size=12))
def test_whatever_is_reported_a_replica_only_goes_forward(reported: list[ReplicaPhase]) -> None:
    status: ReplicaPhase = "placing"
    history: list[ReplicaPhase] = ["placing"]
    for phase in reported:
        if states.may_become(status, phase):
            status = states.transition("r", status, phase)
            history.append(status)
        else:
            with pytest.raises(IllegalMove, match=f"Replica r is {status} and cannot become {phase}"):
                states.transition("r", status, phase)
    woken = [phase for before, phase in zip(["placing", *history], history, strict=False) if before == "parked"]
    assert set(woken) <= {"ready", "draining", "stopped", "failed"}
    order = [states.PHASES.index(phase) for phase in history if phase not in ("ready", "parked")]
    assert order == sorted(set(order)), "never back, never twice, but between ready and parked"
    assert sum(phase in states.ENDED for phase in history) <= 1, "ends once"


def test_what_has_ended_stays_ended() -> None:
    for ended in states.ENDED:
        assert not any(states.may_become(ended, phase) for phase in states.PHASES)


def test_every_phase_may_fail_or_stop_until_it_has_ended() -> None:
    for phase in set(states.PHASES) - set(states.ENDED):
        assert states.may_become(phase, "failed") and states.may_become(phase, "stopped")


@given(st.integers(0, 4), VIEWS, st.booleans())
def test_an_endpoint_is_live_exactly_when_something_serves(
    desired: int, views: list[ReplicaView], failed: bool
) -> None:
    state = states.endpoint_state(desired, views, failed=failed)
    assert (state == "live") == any(states.serves(view) for view in views)
    if state == "zero":
        assert desired == 0 and all(view.status in states.ENDED or states.is_parked(view) for view in views)
    if state == "waking":
        assert desired > 0 or any(states.is_coming(view) for view in views)
    if state == "failed":
        assert failed


@pytest.mark.parametrize(
    ("desired", "views", "failed", "state"),
    [
        (0, [], False, "zero"),
        (1, [], False, "waking"),
        (1, [("loading", "run")], False, "waking"),
        (1, [("ready", "run")], False, "live"),
        (0, [("ready", "drain")], False, "draining"),
        (0, [("draining", "drain")], False, "draining"),
        (0, [("stopped", "drain")], False, "zero"),
        (1, [("failed", "run")], True, "failed"),
        (1, [("ready", "drain"), ("loading", "run")], False, "waking"),
        (2, [("ready", "run")], True, "live"),
        (0, [("parked", "park")], False, "zero"),
        (1, [("parked", "park")], False, "waking"),
        (0, [("ready", "park")], False, "draining"),
        (1, [("parked", "run")], False, "waking"),
    ],
)
def test_the_words_one_by_one(desired: int, views: list[tuple[ReplicaPhase, Intent]], failed: bool, state: str) -> None:
    assert states.endpoint_state(desired, [ReplicaView(*view) for view in views], failed=failed) == state


def test_the_phase_of_waking_is_the_most_advanced() -> None:
    assert states.waking_phase([]) == "placing"
    assert states.waking_phase([ReplicaView("starting", "run"), ReplicaView("warming", "run")]) == "warming"
    assert states.waking_phase([ReplicaView("warming", "drain"), ReplicaView("starting", "run")]) == "starting"
    assert states.waking_phase([ReplicaView("parked", "run"), ReplicaView("warming", "run")]) == "parked"
    assert states.waking_phase([ReplicaView("parked", "park"), ReplicaView("loading", "run")]) == "loading"


def test_a_fatal_start_opens_the_circuit_at_once_and_longer_each_time() -> None:
    circuit, waits = Circuit(), []
    for _ in range(9):
        circuit = states.after_failure(circuit, fatal=True, lived_s=None, now=100.0)
        assert circuit.retry_at is not None
        waits.append(circuit.retry_at - 100.0)
        assert states.half_open(circuit, circuit.retry_at - 0.01) is None
        probe = states.half_open(circuit, circuit.retry_at)
        assert probe is not None and not probe.is_open
        circuit = probe
    assert waits == [1, 5, 25, 120, 120, 120, 120, 120, 120]


def test_three_starts_without_a_verdict_open_it() -> None:
    first = states.after_failure(Circuit(), fatal=False, lived_s=None, now=0)
    second = states.after_failure(first, fatal=False, lived_s=3.0, now=0)
    assert not first.is_open and not second.is_open
    third = states.after_failure(second, fatal=False, lived_s=None, now=0)
    assert third.is_open
    probe = states.half_open(third, 1.0)
    assert probe is not None
    again = states.after_failure(probe, fatal=False, lived_s=None, now=1.0)
    assert again.retry_at == 6.0, "the probe's failure opens it at once, for longer"
    assert probe.is_half_open and not (first.is_half_open or third.is_half_open or again.is_half_open)


@given(st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_one_that_ran_for_long_forgives_everything(failures: int, opens: int, fatal: bool) -> None:
    settled = states.after_failure(Circuit(failures, opens), fatal=fatal, lived_s=states.SETTLED_S, now=5.0)
    assert settled == Circuit()


@given(st.integers(1, 10_000))
def test_backoff_is_bounded(opens: int) -> None:
    assert 1.0 <= states.backoff_s(opens) <= states.LONGEST_BACKOFF_S
