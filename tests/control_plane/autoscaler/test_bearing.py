"""What a replica bears: first by its artifact's speed, then by what was served, and what no artifact can hold."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from control_plane.autoscaler.bearing import ANSWERS, STEP_DOWN, STEP_UP, Bearing, Seen, corrected, measured
from control_plane.autoscaler.window import Rates
from control_plane.endpoints.slo import Slo, unmet

SPEED = {"prefill_tps": 4000.0, "decode_1_tps": 100.0, "decode_8_tps": 400.0, "score": 600.0}
HALF = Slo(ttft_p95_ms=500, itl_p95_ms=30)
BORNE = Bearing(1000.0, 100.0)


def seen(load: float, ttft_ms: float | None, itl_ms: float | None = None, **changes: float) -> Seen:
    facts = {"replicas": 1, "answers": ANSWERS, "span_s": 60.0, **changes}
    rates = Rates(1.0, load * 1000, 0.0, facts["span_s"])
    return Seen(rates, int(facts["replicas"]), int(facts["answers"]), ttft_ms, itl_ms)


def test_what_no_request_alone_is_served_within_is_told_with_the_numbers() -> None:
    assert unmet(SPEED, Slo(itl_p95_ms=10.0)) is None and unmet({}, Slo(itl_p95_ms=1.0)) is None
    field, sentence = unmet(SPEED, Slo(ttft_p95_ms=500, itl_p95_ms=9.0)) or ("", "")
    assert field == "itl_p95_ms" and "is 9, and one token" in sentence and "takes 10.0 ms: 100 tokens/s" in sentence
    assert (unmet(SPEED, Slo(ttft_p95_ms=5.0)) or [""])[0] == "ttft_p95_ms"
    assert measured(SPEED, Slo(itl_p95_ms=9.0), 32) is None and measured({}, HALF, 32) is None


def test_a_shorter_gap_between_tokens_means_fewer_rows_and_a_shorter_wait_less_load() -> None:
    borne = [measured(SPEED, Slo(itl_p95_ms=ms), 32) for ms in (10, 15, 20, 40)]
    speeds = [one.decode_per_s for one in borne if one is not None]
    assert len(speeds) == 4 and speeds == sorted(speeds) and speeds[0] <= 100.0
    waits = [measured(SPEED, Slo(ttft_p95_ms=ms), 32) for ms in (100, 250, 500, 5000)]
    fills = [one.prefill_per_s for one in waits if one is not None]
    assert len(fills) == 4 and fills == sorted(fills) and 800 <= fills[0] < fills[-1] <= 4000


def test_load_is_prompts_and_answers_together_or_the_cache() -> None:
    assert BORNE.replicas(Rates(9.0, 500.0, 50.0, 60.0)) == 1.0
    assert Bearing(1000.0, 100.0, 4000).replicas(Rates(9.0, 500.0, 50.0, 60.0), 10_000) == 2.5


def test_a_latency_that_was_missed_under_load_lowers_it_and_more_that_was_borne_raises_it() -> None:
    assert corrected(BORNE, HALF, seen(0.8, 600)).prefill_per_s < 800
    assert corrected(BORNE, HALF, seen(0.8, 100, 40)).decode_per_s < 80, "either of them"
    assert corrected(BORNE, HALF, seen(1.2, 400)).prefill_per_s == 1200
    assert corrected(BORNE, HALF, seen(0.8, 100)).prefill_per_s == 1050, "tried a little further"
    assert corrected(BORNE, HALF, seen(0.8, 450)) == BORNE
    assert corrected(BORNE, HALF, seen(1.5, 600)) == BORNE, "it was asked for too much, as was known"
    assert corrected(BORNE, HALF, seen(0.1, 600)) == BORNE, "not for the load's sake"
    burst = replace(seen(0.4, 600), most=1.2)
    assert corrected(BORNE, HALF, burst) == BORNE, "a calm minute, but a burst in it that nobody bears"
    assert corrected(BORNE, HALF, replace(burst, most=0.9)).prefill_per_s == 500


def test_few_answers_or_half_a_minute_teach_nothing() -> None:
    assert corrected(BORNE, HALF, seen(0.8, 600, answers=ANSWERS - 1)) == BORNE
    assert corrected(BORNE, HALF, seen(0.8, 600, span_s=30.0)) == BORNE
    assert corrected(BORNE, HALF, seen(0.8, 600, replicas=0)) == BORNE


@given(st.floats(0, 100), st.floats(0, 1e5), st.floats(0, 1e5), st.integers(1, 64))
def test_one_correction_changes_little(load: float, ttft_ms: float, itl_ms: float, replicas: int) -> None:
    better = corrected(BORNE, HALF, seen(load, ttft_ms, itl_ms, replicas=replicas))
    assert STEP_DOWN * 1000 <= better.prefill_per_s <= STEP_UP * 1000
    assert abs(better.decode_per_s * 10 - better.prefill_per_s) < 1e-6, "the shape stays"


@given(st.floats(200, 2000))
def test_corrections_find_what_is_borne(truth: float) -> None:
    believed = BORNE
    for _ in range(60):
        offered = min(1.0, 0.99) * believed.prefill_per_s
        rates = Rates(1.0, offered, 0.0, 60.0)
        believed = corrected(believed, HALF, Seen(rates, 1, 50, 600.0 if offered > truth else 200.0, None))
    assert 0.75 * truth <= believed.prefill_per_s <= 1.15 * truth
