"""Rollouts converge, never exceed desired + 1, never double a generation, and never leave a gap they could avoid."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from control_plane.placement.rollout import SURGE, Copy, next_steps
from data_plane.wire.fleet import Intent, ReplicaPhase

PHASES: st.SearchStrategy[ReplicaPhase] = st.sampled_from(
    ["placing", "starting", "loading", "warming", "ready", "draining"]
)
INTENTS: st.SearchStrategy[Intent] = st.sampled_from(["run", "drain", "stop"])


@st.composite
def fleets(draw: st.DrawFn) -> list[Copy]:
    return [
        Copy(f"r{i}", draw(st.integers(1, 3)), draw(PHASES), draw(INTENTS), float(i))
        for i in range(draw(st.integers(0, 6)))
    ]


def apply(copies: list[Copy], desired: int, generation: int, serial: int, may_start: bool = True) -> list[Copy]:
    steps = next_steps(copies, desired, generation, may_start=may_start)
    gone = {id for id, _ in steps.release}
    kept = [dataclasses.replace(copy, intent="drain") if copy.id in gone else copy for copy in copies]
    fresh = [Copy(f"new{serial}-{i}", generation, "placing", "run", 100.0 + serial) for i in range(steps.start)]
    return kept + fresh


@given(fleets(), st.integers(0, 5))
def test_it_converges_whatever_it_finds(copies: list[Copy], desired: int) -> None:
    was_serving = min(desired, sum(copy.ready for copy in copies))
    for serial in range(30):
        copies = apply(copies, desired, 3, serial)
        counted = [copy for copy in copies if copy.counts]
        assert len([copy for copy in counted if copy.generation == 3]) <= desired
        assert len(counted) <= desired + SURGE or not any(c.id.startswith(f"new{serial}-") for c in copies)
        assert sum(copy.ready for copy in copies) >= was_serving, "a rollout takes no capacity away"
        starting = next((copy for copy in copies if copy.counts and not copy.ready), None)
        if starting is not None:
            copies = [dataclasses.replace(c, status="ready") if c.id == starting.id else c for c in copies]
    assert [copy.generation for copy in copies if copy.ready] == [3] * desired
    assert next_steps(copies, desired, 3, may_start=True) == next_steps(copies, desired, 3, may_start=False)


@given(fleets(), st.integers(0, 5), st.integers(1, 3))
def test_an_open_circuit_starts_nothing(copies: list[Copy], desired: int, generation: int) -> None:
    assert next_steps(copies, desired, generation, may_start=False).start == 0


@given(fleets(), st.integers(0, 5))
def test_a_half_open_circuit_tries_one_and_all_once_that_has_proved_itself(copies: list[Copy], desired: int) -> None:
    probing = next_steps(copies, desired, 3, may_start=True, is_probe=True)
    plain = next_steps(copies, desired, 3, may_start=True)
    current = [copy for copy in copies if copy.counts and copy.generation == 3]
    assert probing.start == min(plain.start, 0 if current else 1) and probing.release == plain.release
    proven = [dataclasses.replace(copy, proven=copy.ready) for copy in copies]
    if any(copy.ready for copy in current):
        assert next_steps(proven, desired, 3, may_start=True, is_probe=True) == plain
    assert next_steps(proven, desired, 3, may_start=False, is_probe=True).start == 0


def test_one_wake_is_one_replica() -> None:
    copies = apply([], 1, 1, 0)
    assert len(copies) == 1 and next_steps(copies, 1, 1, may_start=True).start == 0


def test_a_new_revision_starts_beside_the_old_and_then_the_old_goes() -> None:
    old = Copy("old", 1, "ready", "run", 1.0)
    both = apply([old], 1, 2, 0)
    assert [copy.intent for copy in both] == ["run", "run"]
    assert apply(both, 1, 2, 1) == both, "nothing more until the new one is ready"
    served = [old, dataclasses.replace(both[1], status="ready")]
    steps = next_steps(served, 1, 2, may_start=True)
    assert steps.start == 0 and [id for id, _ in steps.release] == ["old"]


def test_the_unready_and_the_newest_go_first() -> None:
    copies = [
        Copy("first", 1, "ready", "run", 1.0),
        Copy("second", 1, "ready", "run", 2.0),
        Copy("third", 1, "loading", "run", 0.5),
    ]
    assert [id for id, _ in next_steps(copies, 1, 1, may_start=True).release] == ["third", "second"]
