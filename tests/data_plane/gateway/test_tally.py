"""What requests come to: counters that only grow, whatever is read of them when."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from data_plane.gateway.exchange import Exchange
from data_plane.gateway.meter import EVENT_BYTES, Meter
from data_plane.gateway.tally import Tally, Work


class Nobody:
    """Books that are kept by the test itself."""

    def begin(self, work: Work) -> None: ...
    def end(self, work: Work) -> None: ...


def request(arrived: float = 0.0, *, lease: Any = None, first_byte_s: float | None = None, stream: bool = True) -> Work:
    response = object() if stream else None
    facts = SimpleNamespace(arrived=arrived, lease=lease, first_byte_s=first_byte_s, response=response, outcome="ok")
    return Work(Nobody(), "e", cast(Exchange, facts), Meter(9, 100))


def test_time_in_hand_tokens_and_what_is_held() -> None:
    tally, work = Tally(100.0), request(lease=SimpleNamespace(prompt_tokens=80, matched_tokens=50))
    assert tally.demand("e", 0, 100.0).idle_for_s is None, "it never saw work"
    tally.begin(work, 110.0)
    assert work.meter is not None
    work.meter.relay(b"data: " + b"x" * (4 * EVENT_BYTES - 8) + b"\n\n")
    now = tally.demand("e", 0, 114.0)
    assert now.totals is not None and (now.running, now.idle_for_s, now.kv_tokens) == (1, 0.0, 84)
    assert (now.totals.busy_s, now.totals.prefill_tokens, now.totals.decode_tokens) == (4.0, 30, 4)
    work.meter.relay(b": usage 80 3\n\ndata: [DONE]\n\n")
    tally.end(work, 115.0)
    after = tally.demand("e", 0, 120.0)
    assert after.totals is not None and (after.running, after.idle_for_s, after.kv_tokens) == (0, 5.0, 0)
    assert (after.totals.busy_s, after.totals.decode_tokens) == (5.0, 4), "what was counted is not taken back"


def test_who_waits_has_no_prompt_yet_and_is_no_running_request() -> None:
    tally = Tally(0.0)
    tally.begin(request(), 0.0)
    seen = tally.demand("e", 1, 1.0)
    assert seen.totals is not None and (seen.running, seen.waiting, seen.totals.prefill_tokens) == (0, 1, 0.0)


def test_latency_is_that_of_streams_of_the_last_minute() -> None:
    tally = Tally(0.0)
    for ttft_ms in range(1, 101):
        work = request(10.0, first_byte_s=ttft_ms / 1000)
        tally.begin(work, 10.0)
        assert work.meter is not None
        work.meter.relay(b": usage 5 11\n\ndata: [DONE]\n\n")
        tally.end(work, 10.0 + ttft_ms / 1000 + 0.5)
    whole = request(10.0, first_byte_s=9.0, stream=False)
    tally.begin(whole, 10.0)
    tally.end(whole, 19.0)
    latency = tally.demand("e", 0, 20.0).latency
    assert latency is not None and (latency.answers, latency.ttft_p95_ms) == (100, 95.0)
    assert latency.itl_p95_ms == pytest.approx(50.0)
    assert tally.demand("e", 0, 80.0).latency is None
