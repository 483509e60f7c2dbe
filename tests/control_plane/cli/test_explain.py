"""`ebb explain`, `ebb events --decisions`, `ebb simulate decision`, `ebb bench place`, over a stub of a platform."""

import json
from typing import Any

from tests.control_plane.cli.conftest import Reply, StubPlatform

AT = "2026-07-01T12:00:00.000Z"
RESIDENT = {
    **{"replica_id": "r1", "endpoint_id": "e1", "endpoint": "idle", "spot": ["n", "cpu"], "standing": "ready"},
    **{"holds_bytes": 1000, "has_work": False, "ready_for_s": 600.0, "idle_s": 60.0, "arrivals_per_s": 0.1},
}
EVICTED = {
    **{"id": 7, "at": AT, "kind": "evict", "subject": "idle", "policy": "eviction", "reason": "Stopped to make room."},
    "outcome": {"victims": ["r1"], "how": "stop"},
    "inputs": {"residents": [RESIDENT], "missing_bytes": 900, "is_first": True},
}


def test_explain_tells_sentences_and_decisions(ebb: Any, platform: StubPlatform) -> None:
    told = {"endpoint": "chat", "state": "waking", "sentences": ["'chat' waits"], "decisions": [EVICTED]}
    platform.on("GET /api/v1/endpoints/chat/explain", Reply(200, told))
    result = ebb("explain", "chat")
    assert (
        result.code == 0
        and result.out.startswith("'chat' waits.\n")
        and "evict  Stopped to make room. [7]" in result.out
    )
    assert json.loads(ebb("explain", "chat", "-o", "json").out) == told


def test_a_decision_is_asked_again(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/decisions/7", Reply(200, EVICTED))
    [same] = json.loads(ebb("simulate", "decision", "7", "-o", "json").out)
    assert (same["then"], same["now"], same["same"]) == ("r1", "r1", True)
    other = ebb("simulate", "decision", "7", "--set", "residents.0.has_work=true", "-o", "json")
    assert other.code == 0 and json.loads(other.out)[0]["now"] == "nobody"
    wrong = ebb("simulate", "decision", "7", "--set", "residents.5.x=1")
    assert wrong.code == 1 and "there is no '5'" in wrong.err
    assert "PATH=VALUE" in ebb("simulate", "decision", "7", "--set", "x=nothing").err
    platform.on("GET /api/v1/decisions", Reply(200, {"items": [{**EVICTED, "outcome": {"victims": ["r2"]}}]}))
    changed = ebb("simulate", "decisions", "--from-events")
    assert changed.code == 1 and "ANOTHER" in changed.out, "this version decides otherwise"
    assert ebb("simulate", "decisions").code == 2
    assert "evict" in ebb("events", "--decisions").out


def test_bench_place(ebb: Any) -> None:
    half, full = json.loads(ebb("bench", "place", "--endpoints", "10", "--rounds", "1", "-o", "json").out)
    assert (half["nodes"], half["devices"], half["placed"], full["evicting"]) == (2, 16, 1, 1)
    assert ebb("bench", "place", "--endpoints", "ten").code == 2
