"""Windows over counters: means that lost reports and restarts of gateways do not spoil."""

import dataclasses
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.autoscaler.bearing import Bearing
from control_plane.autoscaler.policy import Limits, Observation, decide
from control_plane.autoscaler.reports import Told, demand_of
from control_plane.autoscaler.window import PANIC_S, STABLE_S, Rates, Sample, peak, rates, together

NOW = 1_000_000.0


def steady(concurrency: float, prefill: float, decode: float, seconds: int = 80, every: int = 2) -> list[Sample]:
    ago = range(seconds, -1, -every)
    return [(NOW - s, 50 + concurrency * (seconds - s), prefill * (seconds - s), decode * (seconds - s)) for s in ago]


def near(one: Rates | None, concurrency: float, prefill: float, decode: float) -> bool:
    assert one is not None
    pairs = ((one.concurrency, concurrency), (one.prefill_per_s, prefill), (one.decode_per_s, decode))
    return all(math.isclose(seen, wanted, rel_tol=1e-6, abs_tol=1e-6) for seen, wanted in pairs)


@given(st.floats(0, 100), st.floats(0, 1e4), st.floats(0, 1e4), st.sampled_from([1, 2, 5, 9]))
def test_steady_work_is_the_same_in_every_window_however_many_reports_came(
    concurrency: float, prefill: float, decode: float, every: int
) -> None:
    samples = steady(concurrency, prefill, decode, 90, every)
    for window_s in (STABLE_S, PANIC_S):
        seen = rates(samples, window_s, NOW)
        assert near(seen, concurrency, prefill, decode) and seen is not None and seen.is_whole(window_s)
    assert near(peak(samples, NOW), concurrency, prefill, decode)


def test_too_little_is_no_data() -> None:
    assert rates([], STABLE_S, NOW) is None and peak([], NOW) is None
    assert rates([(NOW, 1.0, 1.0, 1.0)], STABLE_S, NOW) is None
    assert rates([(NOW, 1.0, 1.0, 1.0)] * 2, STABLE_S, NOW) is None, "twice the same moment"
    young = rates(steady(1, 1, 1, 20), STABLE_S, NOW)
    assert young is not None and math.isclose(young.span_s, 20) and not young.is_whole(STABLE_S)


def test_a_gateway_that_began_anew_is_known_from_then_on() -> None:
    reborn = [*steady(8, 100, 100), (NOW + 2, 0.0, 0.0, 0.0), (NOW + 4, 4.0, 20.0, 0.0)]
    seen = rates(reborn, STABLE_S, NOW + 4)
    assert near(seen, 2, 10, 0) and seen is not None and seen.span_s == 2.0


def test_work_after_an_idle_time_is_not_spread_over_it() -> None:
    samples = [(NOW - 4000, 10.0, 10.0, 10.0), (NOW - 4, 10.0, 10.0, 10.0), (NOW, 18.0, 410.0, 10.0)]
    assert near(rates(samples, PANIC_S, NOW), 8 / PANIC_S, 400 / PANIC_S, 0)
    assert near(rates(samples, STABLE_S, NOW), 8 / STABLE_S, 400 / STABLE_S, 0)


def test_an_idle_gateway_counts_no_further() -> None:
    samples = steady(6, 60, 6)
    assert near(rates(samples, STABLE_S, NOW + 30, is_idle=True), 3, 30, 3)
    assert near(rates(samples, STABLE_S, NOW + 600, is_idle=True), 0, 0, 0)
    assert near(peak(samples, NOW + 30, is_idle=True), 6, 60, 6)
    assert near(peak(samples, NOW + 90, is_idle=True), 0, 0, 0)


def test_the_peak_is_the_busiest_moment_of_the_minute() -> None:
    burst = [(at, busy + (40 if at > NOW - 30 else 0), fill, out) for at, busy, fill, out in steady(1, 10, 10)]
    seen = peak(burst, NOW)
    assert seen is not None and seen.concurrency > 7 > 2 > seen.prefill_per_s / 10
    assert near(peak(burst, NOW + 200, is_idle=True), 0, 0, 0)


def test_gateways_together_are_as_well_known_as_the_least() -> None:
    one, other = Rates(1, 2, 3, 60), Rates(10, 20, 30, 7)
    assert together([one, other]) == Rates(11, 22, 33, 7)
    assert together([one, None]) is None and together([]) is None


@given(st.lists(st.floats(0, 40), min_size=31, max_size=31), st.integers(1, 8), st.sampled_from([4, 32]))
@settings(max_examples=60, deadline=None)
def test_looking_at_less_decides_the_same(levels: list[float], desired: int, target: int) -> None:
    busy, samples = 0.0, list[Sample]()
    for step, level in enumerate(levels):
        samples.append((NOW - 60 + 2 * step, busy, 50 * busy, 5 * busy))
        busy += 2 * level
    for limits in (Limits(0, 8, 30, target), Limits(0, 8, 30, target, Bearing(1000.0, 100.0))):
        lazy = demand_of([Told(3, 0, NOW, 10, samples)], desired, limits, NOW)
        whole = tuple(dataclasses.replace(one, peak=peak(samples, NOW)) for one in lazy)
        seen = Observation(desired, 0, lazy, NOW, serving=desired)
        assert decide(seen, limits, NOW) == decide(dataclasses.replace(seen, demand=whole), limits, NOW)
