"""`ebb ps --starts`: the table, the bar, the JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.cli.starts import BAR_COLUMNS, PHASES, bar
from tests.control_plane.cli.conftest import Reply, StubPlatform

REPLICA: dict[str, Any] = {
    **{"id": "r1", "endpoint": "chat", "node": "box", "device": "cpu", "status": "stopped", "phase": "stopped"},
    **{"generation": 1, "reason": "No work for 30 s.", "created_at": "2026-01-01T00:00:00+00:00", "pid": 7},
    **{"ready_at": "2026-01-01T00:00:02+00:00", "ended_at": None},
    "spans": {"decide": 0.02, "place": 0.03, "spawn": 0.2, "import": 0.3, "load": 0.0125, "warmup": 0.1, "ready": 0.7},
}
FAILED = {
    **{**REPLICA, "id": "r2", "status": "failed", "reason": "The weights are not there.", "ready_at": None},
    "spans": {"decide": 0.02},
}


def test_starts_are_told_with_their_phases(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/replicas", Reply(body={"items": [REPLICA, FAILED]}))
    told = json.loads(ebb("ps", "--starts", "-o", "json").out)
    assert [start["replica"] for start in told] == ["r1", "r2"]
    assert told[0]["total_s"] == 0.7 and list(told[0]["spans"]) == list(PHASES)
    assert told[1]["total_s"] is None and told[1]["spans"] == {"decide": 0.02}
    head, first, second = ebb("ps", "--starts").out.splitlines()
    assert head.split()[:5] == ["ENDPOINT", "STARTED", "NODE", "DEVICE", "TOTAL"]
    assert "700 ms" in first and "12 ms" in first and "sssssss" in first and "iiiiiiiiiii" in first
    assert "failed" in second and "The weights are not there." in second


def test_no_starts_yet(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/replicas", Reply(body={"items": []}))
    assert "ebb wake NAME" in ebb("ps", "--starts").err


@given(st.dictionaries(st.sampled_from(PHASES), st.floats(0.001, 100), min_size=1))
def test_the_bar_is_full_and_in_order(spans: dict[str, float]) -> None:
    drawn = bar(spans)
    assert len(drawn) == BAR_COLUMNS
    letters = [name[0] for name in PHASES]
    assert [letters.index(letter) for letter in drawn] == sorted(letters.index(letter) for letter in drawn)
    longest = max(spans, key=lambda name: spans[name])
    assert longest[0] in drawn


@pytest.mark.parametrize("spans", [{}, {"load": 0.0}])
def test_no_bar_of_nothing(spans: dict[str, float]) -> None:
    assert bar(spans) == ""
