"""The simulator on traces whose answers are known, and its books on traces made up."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.simulator.figures import percentile, pooled_share, summarise, ttfts
from control_plane.simulator.ideal import infinite_share, pooled
from control_plane.simulator.policies import POLICIES, Fleet, Policy
from control_plane.simulator.replay import Outcome, Setting, replay
from control_plane.simulator.saturation import at_load, offered
from control_plane.simulator.settings import ReplicaSettings
from control_plane.simulator.workload import Request, Session, Workload
from data_plane.router.loads import Report

SETTINGS = ReplicaSettings(prefill_tokens_per_s=1000.0, step_s=0.01, step_tokens=100, batch=4, report_every_s=0.01)


def workload(*sessions: Session) -> Workload:
    return Workload(sessions, block_tokens=100, prefix_blocks=2)


def one(start_s: float, chain: tuple[int, ...], tokens: int, output: int = 1) -> Session:
    return Session((Request(chain, tokens, output),), start_s)


def run(load: Workload, policy: str = "ebb", replicas: int = 1, blocks: int = 100) -> Outcome:
    return replay(load, POLICIES[policy], Setting(replicas, blocks, SETTINGS), lambda _done: None)


def test_a_prompt_takes_its_tokens_and_what_is_held_takes_none() -> None:
    outcome = run(workload(one(0.0, (1, 2, 3), 350), one(10.0, (1, 2, 3, 4), 450), one(20.0, (1, 2, 9), 300)))
    assert ttfts(outcome) == pytest.approx([0.35, 0.15, 0.1])
    assert [job.matched_blocks for job in outcome.jobs] == [0, 3, 2]
    assert outcome.work_tokens == [350 + 150 + 100 + 3]


def test_prompts_wait_for_each_other_and_decoding_slows_them() -> None:
    outcome = run(workload(one(0.0, (1,), 100, output=1000), one(0.0, (2,), 200), one(0.0, (3,), 100)))
    # from the second on, one of a step's 100 tokens is the first request's; the shorter goes before the longer, as in
    # the engine
    assert ttfts(outcome) == pytest.approx([0.1, 0.1 + 300 / 990, 0.1 + 100 / 990])


def test_an_answer_takes_a_step_a_token() -> None:
    outcome = run(workload(one(0.0, (1,), 100, output=101)))
    job = outcome.jobs[0]
    assert job.first_at is not None and job.ended_at is not None
    # alone, each step is the least that a step takes and one token more
    assert job.ended_at - job.first_at == pytest.approx(100 * (0.01 + 1 * SETTINGS.token_s))


def test_a_full_batch_lets_nobody_in() -> None:
    outcome = run(workload(*(one(0.0, (number,), 100, output=50) for number in range(5))))
    first_end = min(job.ended_at or 0.0 for job in outcome.jobs)
    assert outcome.jobs[4].first_at is not None and outcome.jobs[4].first_at >= first_end


def test_a_session_sends_its_next_request_when_it_has_thought() -> None:
    requests = (Request((1,), 100, 1), Request((1, 2), 200, 1, think_s=5.0))
    outcome = run(workload(Session(requests, 1.0, "s")))
    assert [job.arrived for job in outcome.jobs] == pytest.approx([1.0, 1.0 + 0.1 + 5.0])
    assert ttfts(outcome) == pytest.approx([0.1, 0.1])


def test_round_robin_loses_what_ebb_keeps() -> None:
    turns = tuple(Request(tuple(range(turn + 5)), 500 + 100 * turn, 1, think_s=1.0) for turn in range(6))
    load = workload(*(Session(_renamed(turns, number), 0.1 * number, f"s{number}") for number in range(3)))
    kept, lost = run(load, "ebb", replicas=2), run(load, "round-robin", replicas=2)
    assert sum(job.matched_blocks for job in kept.jobs) == 3 * (5 + 6 + 7 + 8 + 9)
    assert sum(job.matched_blocks for job in lost.jobs) < 3 * (5 + 6 + 7 + 8 + 9)
    assert [len({job.replica for job in kept.jobs if job.session == number}) for number in range(3)] == [1, 1, 1]
    figures = summarise("ebb", kept, pooled_share(kept, 200, 100), infinite_share(load))
    assert figures.hit_share == figures.ideal_same_caches == 35 / 45
    assert figures.ideal_infinite == pytest.approx(35 / 45)
    assert figures.max_over_mean_load == pytest.approx(4 / 3)


def _renamed(requests: tuple[Request, ...], number: int) -> tuple[Request, ...]:
    return tuple(
        Request(tuple(100 * number + name for name in one.chain), one.prompt_tokens, one.output_tokens, one.think_s)
        for one in requests
    )


def test_saturation_is_where_the_work_left_takes_every_step() -> None:
    load = workload(*(one(float(number), (number % 2, 10 + number % 2), 200, output=50) for number in range(20)))
    # two of the prompts are computed, of the others one token each
    work = 2 * 200 + 18 * 1 + 20 * 50
    assert pooled(load.requests(), 100, 100).work_tokens == work
    ready = at_load(load, 0.5, 4, 100, SETTINGS)
    assert ready.saturation_per_s == pytest.approx(20 / (work / 4000.0))
    assert ready.workload.span_s == pytest.approx(2 * work / 4000.0)


def test_sessions_that_are_too_few_for_the_load_are_repeated() -> None:
    def session(number: int) -> Session:
        return Session(
            (Request((0, 10 + number), 200, 1), Request((0, 10 + number, 20 + number), 300, 1, think_s=50.0)),
            float(number),
            f"s{number}",
        )

    ready = at_load(workload(*map(session, range(4))), 0.5, 2, 10_000, SETTINGS)
    sessions = ready.workload.sessions
    assert len(sessions) % 4 == 0 and len({one.key for one in sessions}) == len(sessions) > 4
    assert {one.requests[0].chain[0] for one in sessions} == {0}
    assert len({one.requests[1].chain[1:] for one in sessions}) == len(sessions)
    # the shared block is computed once, of each session one block a request
    work = (100 + len(sessions) * (100 + 100 + 2)) / 2000.0
    assert ready.workload.span_s == pytest.approx(work / 0.5, rel=0.01)


def test_a_closed_loop_is_saturated_where_the_ideal_router_is_queues_and_all() -> None:
    turns = tuple(Request(tuple(range(turn + 5)), 500 + 100 * turn, 1, think_s=4.0) for turn in range(8))
    load = workload(*(Session(_renamed(turns, number), float(number), f"s{number}") for number in range(24)))
    ready = at_load(load, 0.7, 2, 20, SETTINGS)
    assert len(ready.workload.sessions) == 24
    pooled_setting = Setting(2, 20, SETTINGS, is_pooled=True)
    saturated_s = ready.workload.span_s * 0.7
    assert ready.saturation_per_s == pytest.approx(24 * 8 / saturated_s)
    # the denser the starts, the less is found: so few caches fit three sessions, and the work is no fixed number
    shares = [offered(load.over(saturated_s * factor), pooled_setting) for factor in (0.5, 0.97, 1.03, 2.0)]
    assert shares[0] > 2.05 and shares[3] < 0.48
    assert shares[1] > 0.9 and shares[2] < 1.1


def test_what_a_waiting_request_will_find_outlasts_those_before_it() -> None:
    known, other = tuple(range(4)), tuple(range(10, 14))
    first = workload(one(0.0, known, 400), one(5.0, other, 400), one(10.0, (20, 21), 200), one(10.1, known, 400))
    outcome = run(first, blocks=8)
    # without being asked for at 10.1, it would have been the oldest when the one before it ended
    assert [job.matched_blocks for job in outcome.jobs] == [0, 0, 0, 4]


def test_without_reuse_nothing_is_found() -> None:
    load = workload(*(one(float(number), (1, 2, 3), 300) for number in range(10))).unique()
    outcome = run(load, replicas=2)
    assert not any(job.matched_blocks for job in outcome.jobs)
    assert pooled_share(outcome, 200, 100) == infinite_share(load) == 0.0


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.01, 0.5, 0.51, 0.99, 1.0)] == [1, 2, 3, 4, 4]


SESSIONS = st.lists(
    st.builds(
        Session,
        st.lists(
            st.builds(
                Request,
                st.integers(0, 6).map(lambda length: tuple(range(length))),
                st.integers(1, 900),
                st.integers(1, 60),
                st.floats(0.0, 2.0),
            ),
            min_size=1,
            max_size=4,
        ).map(tuple),
        st.floats(0.0, 5.0),
        st.none() | st.text("ab", max_size=2),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=15, deadline=None)
@given(SESSIONS, st.integers(1, 4), st.integers(1, 8), st.integers(1, 3), st.sampled_from([0.0, 0.5]))
def test_books_balance(
    name: str, sessions: list[Session], replicas: int, blocks: int, gateways: int, delay_s: float
) -> None:
    heard: list[tuple[int, set[int]]] = []

    def make(fleet: Fleet) -> Policy:
        return _watched(POLICIES[name](fleet), heard)

    done: list[int] = []
    setting = Setting(replicas, blocks, SETTINGS, gateways, delay_s)
    outcome = replay(workload(*sessions), make, setting, done.append)
    total = sum(len(session.requests) for session in sessions)
    assert len(outcome.jobs) == total and done == list(range(1, total + 1))
    assert sum(outcome.work_tokens) == sum(job.computed_tokens + job.request.output_tokens for job in outcome.jobs)
    assert all(job.computed_tokens <= max(1, job.request.prompt_tokens) for job in outcome.jobs)
    assert all(len(held) <= blocks for _, held in heard)


def _watched(policy: Policy, heard: list[tuple[int, set[int]]]) -> Policy:
    """The policy, with a note of what the replicas say that they hold."""
    held: dict[int, set[int]] = {}
    tell: Callable[..., None] = policy.reported

    def reported(replica: int, report: Report, stored: Sequence[int], evicted: Sequence[int], now: float) -> None:
        mine = held.setdefault(replica, set())
        mine.difference_update(evicted)
        mine.update(stored)
        heard.append((replica, set(mine)))
        tell(replica, report, stored, evicted, now)

    policy.reported = reported
    return policy
