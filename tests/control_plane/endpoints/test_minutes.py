"""What is kept of a gateway's counters: a minute of samples, and the minutes before it, however reports came."""

import random

import pytest

from control_plane.endpoints.minutes import KEPT_S, MINUTE_S, SAMPLES_S, Sample, split, with_sample

BEGIN = 600_000.0


def kept_of(*samples: Sample) -> list[Sample]:
    kept: list[Sample] = []
    for sample in samples:
        kept = with_sample(kept, sample)
    return kept


@pytest.mark.parametrize("seed", range(6))
def test_no_work_is_lost_or_counted_twice(seed: int) -> None:
    dice = random.Random(seed)
    at, tokens, samples = BEGIN, 0.0, [(BEGIN, 0.0, 0.0, 0.0)]
    for _ in range(200):
        at, tokens = at + dice.uniform(0.3, 5.0), tokens + dice.uniform(0, 5000)
        samples.append((at, 0.0, tokens, 2 * tokens))
    minutes, last = split(kept_of(*samples))
    running = at - at % MINUTE_S
    before = [one for one in last if one[0] < running]
    closed_at = before[-1] if before else last[0]
    if len(minutes) < KEPT_S / MINUTE_S and (before or not minutes):
        assert abs(sum(minute[1] for minute in minutes) - closed_at[2]) < 0.1 * (1 + len(minutes))
    begins = [minute[0] for minute in minutes]
    assert begins == sorted(set(begins)) and all(begin > at - KEPT_S - 2 * MINUTE_S for begin in begins)
    assert last[-1] == samples[-1] and sum(one[0] <= at - SAMPLES_S for one in last) <= 1
    assert all(minute[3] * 6.0 <= minute[1] + 5000 * 21 for minute in minutes)


def test_a_minute_has_its_burst_and_its_tokens() -> None:
    calm = [(BEGIN + t, float(t), 10.0 * t, 0.0) for t in range(0, 31, 2)]
    burst = [(BEGIN + 30 + t, 0.0 + 30 + t, 300.0 + 1000.0 * t, 60.0 * t) for t in range(2, 7, 2)]
    after = [(BEGIN + t, float(t), 6300.0, 360.0) for t in range(38, 64, 2)]
    minutes, samples = split(kept_of(*calm, *burst, *after))
    assert [list(minute) for minute in minutes] == [[BEGIN, 6300.0, 360.0, 1000.0, 60.0]]
    assert len(samples) == 31 and samples[0][0] == BEGIN + 2


def test_idle_minutes_are_none_and_old_ones_go() -> None:
    work = [(BEGIN + t, float(t), 10.0 * t, 0.0) for t in range(0, 60, 2)]
    late = BEGIN + 600.0
    kept = kept_of(*work, (late, 58.0, 580.0, 0.0), (late + 61.0, 58.0, 580.0, 0.0))
    assert [minute[0] for minute in split(kept)[0]] == [BEGIN]
    kept = kept_of(*work, (BEGIN + KEPT_S + 30.0, 58.0, 580.0, 0.0), (BEGIN + KEPT_S + 90.0, 59.0, 600.0, 0.0))
    kept = with_sample(kept, (BEGIN + KEPT_S + 150.0, 60.0, 620.0, 0.0))
    assert BEGIN not in [minute[0] for minute in split(kept)[0]]


def test_a_gateway_that_began_anew_keeps_its_minutes_and_begins_its_samples() -> None:
    work = [(BEGIN + t, float(t), 10.0 * t, 0.0) for t in range(0, 60, 2)]
    minutes, samples = split(kept_of(*work, (BEGIN + 70.0, 1.0, 5.0, 0.0)))
    assert [minute[:2] for minute in minutes] == [[BEGIN, 580.0]] and samples == [(BEGIN + 70.0, 1.0, 5.0, 0.0)]
