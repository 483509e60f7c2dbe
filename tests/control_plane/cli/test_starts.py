"""`ebb ps --starts`: the table, the bar, the JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.cli.starts import BAR_COLUMNS, LETTERS, PHASES, bar
from tests.control_plane.cli.conftest import Reply, StubPlatform

START: dict[str, Any] = {
    **{"id": "s1", "replica": "r1", "endpoint": "chat", "node": "box", "device": "cpu", "artifact": "sha256:a"},
    **{"tier": "cached", "outcome": "ready", "reason": "", "created_at": "2026-01-01T00:00:00+00:00"},
    **{"total_s": 0.7, "bytes": 10, "bound_s": 0.01, "ended_at": "2026-01-01T00:00:02+00:00"},
    "spans": {"load": 0.0125, "place": 0.03, "spawn": 0.2, "import": 0.3, "decide": 0.02, "warm_up": 0.1},
}
FAILED = {
    **{**START, "replica": "r2", "outcome": "failed", "reason": "The weights are not there.", "total_s": None},
    **{"spans": {"decide": 0.02}, "bound_s": None},
}
ANSWERED = {**START, "replica": "r3", "spans": {**START["spans"], "route": 0.02, "first_token": 0.13, "new": 1.0}}


def test_starts_are_told_with_their_phases(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/starts", Reply(body={"items": [START, FAILED, ANSWERED]}))
    told = json.loads(ebb("ps", "--starts", "-o", "json").out)
    assert [start["replica"] for start in told] == ["r1", "r2", "r3"]
    assert list(told[0]["spans"]) == ["decide", "place", "spawn", "import", "load", "warm_up"]
    assert told[0]["total_s"] == 0.7 and told[0]["client_s"] is None
    assert told[1]["total_s"] is None and told[1]["spans"] == {"decide": 0.02}
    assert told[2]["client_s"] == 0.85 and told[2]["spans"]["new"] == 1.0, "the wait for the answer counts for clients"
    head, first, second, _ = ebb("ps", "--starts").out.splitlines()
    assert head.split()[:8] == ["ENDPOINT", "STARTED", "NODE", "DEVICE", "FROM", "READY", "IN", "BOUND"]
    assert "700 ms" in first and "10 ms" in first and "12 ms" in first and "sssssss" in first and "iiiiiiiiiii" in first
    assert "failed" in second and "The weights are not there." in second


def test_no_starts_yet(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/starts", Reply(body={"items": []}))
    assert "ebb wake NAME" in ebb("ps", "--starts").err


@given(st.dictionaries(st.sampled_from(PHASES), st.floats(0.001, 100), min_size=1))
def test_the_bar_is_full_and_in_order(spans: dict[str, float]) -> None:
    drawn = bar(spans)
    assert len(drawn) == BAR_COLUMNS
    letters = list(LETTERS.values())
    assert len(set(letters)) == len(PHASES)
    assert [letters.index(letter) for letter in drawn] == sorted(letters.index(letter) for letter in drawn)
    longest = max(spans, key=lambda name: spans[name])
    assert LETTERS[longest] in drawn


@pytest.mark.parametrize("spans", [{}, {"load": 0.0}])
def test_no_bar_of_nothing(spans: dict[str, float]) -> None:
    assert bar(spans) == ""
