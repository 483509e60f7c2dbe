"""What a gateway believes of a replica's work between two of its reports."""

from data_plane.router.choose import COMES_BACK
from data_plane.router.loads import LATEST, Loads, Report


def test_without_reports_only_what_was_sent_is_known() -> None:
    loads = Loads()
    loads.sent("a", 1, 500, 0.0)
    loads.sent("a", 2, 300, 1.0)
    one = loads.candidate("a", 4)
    assert (one.in_flight, one.running, one.pending_tokens, one.slots) == (2, None, 800, 4)
    loads.answered("a", 1, 10.0)
    assert one.pending_tokens == 300
    loads.ended("a", 1, 10.0)
    loads.ended("a", 1, 10.0)
    loads.ended("a", 2, 10.0)
    assert (one.in_flight, one.pending_tokens) == (0, 0)
    assert loads.candidate("b", 4).in_flight == 0


def test_what_a_report_cannot_know_counts_on_top() -> None:
    loads = Loads(report_lag_s=1.0)
    loads.sent("a", "old", 500, 0.0)
    loads.sent("a", "new", 300, 9.5)
    loads.reported("a", Report(3, 1, 2000, 0.5, 800.0, 90.0), 10.0)
    one = loads.candidate("a", 4)
    assert (one.running, one.waiting, one.pending_tokens, one.prefill_tokens_per_s) == (3, 2, 2300, 800.0)
    loads.answered("a", "new", 10.0)
    assert one.pending_tokens == 2000
    loads.reported("a", Report(3, 1, 100, 0.5, 800.0, 90.0), 11.0)
    assert (one.in_flight, one.waiting, one.pending_tokens) == (2, 1, 100)


def test_what_answers_take_is_learned_and_tells_when_a_place_comes_free() -> None:
    loads = Loads()
    for request, ends in enumerate((2.0, 4.0)):
        loads.sent("a", request, 500, 0.0)
        loads.answered("a", request, 1.0)
        loads.ended("a", request, ends)
    one = loads.candidate("a", 2)
    assert one.answer_s == 1.0 + LATEST * 2.0 and one.place_s == 0.0
    for request in (3, 4):
        loads.sent("a", request, 0, 5.0)
    assert one.place_s == 0.6 == one.wait_s - COMES_BACK * one.recent_tokens * one.token_s
    loads.sent("a", 5, 0, 5.0)
    assert one.place_s == one.answer_s, "one is ahead"
    loads.ended("a", 5, 6.0)
    assert one.answer_s == 1.2, "it had not begun to answer"


def test_a_replica_that_falls_silent_is_known_by_what_was_sent() -> None:
    loads = Loads()
    loads.sent("a", 1, 500, 0.0)
    loads.reported("a", Report(3, 1, 2000, 0.5), 10.0)
    loads.silent("a")
    one = loads.candidate("a", 4)
    assert (one.in_flight, one.running, one.pending_tokens) == (1, None, 500)
    loads.forget("a")
    assert loads.candidate("a", 4).in_flight == 0
