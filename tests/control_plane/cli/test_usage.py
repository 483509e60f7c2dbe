"""`ebb usage`: the table, the JSON, and times that are none."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import typer

from control_plane.cli.usage import since_of
from tests.control_plane.cli.conftest import Reply, StubPlatform

NOW = datetime(2026, 2, 1, 12, tzinfo=UTC)
ITEM: dict[str, Any] = {
    **{"endpoint": "chat", "key": None, "at": None, "requests": 1200, "refused": 0, "failed": 3, "cancelled": 1},
    **{"cold": 6, "cold_share": 0.005, "prompt_tokens": 40_000, "cached_tokens": 10_000, "completion_tokens": 9000},
    **{"mean_ms": 1500.0, "ttft_p50_ms": 42.5, "ttft_p95_ms": 1250.0},
}
QUIET = {**ITEM, "endpoint": "rare", "prompt_tokens": 0, "ttft_p50_ms": None, "ttft_p95_ms": None, "cold_share": None}


def test_the_table_is_for_people_and_the_json_for_programs(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/usage", Reply(body={"items": [ITEM, QUIET], "next": None}))
    result = ebb("usage", "--since", "24h")
    head, first, second = result.out.splitlines()
    assert head.split()[:6] == ["ENDPOINT", "REQUESTS", "FAILED", "PROMPT", "CACHED", "COMPLETION"]
    assert first.split() == [
        *("chat", "1,200", "3", "40,000", "25%", "9,000", "42", "ms", "1.25", "s", "1.50", "s", "0.5%")
    ]
    assert second.split()[0] == "rare" and "2,400 requests" in result.err
    query = parse_qs(urlsplit(platform.asked[0][0].split()[1]).query)
    asked = datetime.fromisoformat(query["since"][0])
    assert query["by"] == ["endpoint"] and timedelta(hours=23) < datetime.now(UTC) - asked < timedelta(hours=25)
    assert json.loads(ebb("usage", "-o", "json").out) == [ITEM, QUIET]


def test_by_hour_and_key_and_page_by_page(ebb: Any, platform: StubPlatform) -> None:
    hours = [{**ITEM, "at": f"2026-01-31T{hour:02}:00:00.000Z"} for hour in (1, 2)]
    pages = [Reply(body={"items": [hour], "next": after}) for hour, after in zip(hours, ("x/chat", None), strict=True)]
    platform.on("GET /api/v1/usage", *pages)
    assert len(ebb("usage", "chat", "--by", "hour").out.splitlines()) == 3
    assert "after=x%2Fchat" in platform.asked[1][0] and "endpoint=chat" in platform.asked[1][0]
    platform.on(
        "GET /api/v1/usage", Reply(body={"items": [{**ITEM, "key": "k1"}, {**ITEM, "key": "k2"}], "next": None})
    )
    platform.on("GET /api/v1/keys", Reply(body={"items": [{"id": "k1", "name": "team"}]}))
    _, first, second = ebb("usage", "--by", "key").out.splitlines()
    assert (first.split()[1], second.split()[1]) == ("team", "k2"), "a key that is gone has no name"


def test_nothing_was_used(ebb: Any, platform: StubPlatform) -> None:
    platform.on("GET /api/v1/usage", Reply(body={"items": [], "next": None}))
    assert "No request to 'chat' was counted since 7d." in ebb("usage", "chat").err


def test_since() -> None:
    assert since_of("90m", NOW) == NOW - timedelta(minutes=90)
    assert since_of("2w", NOW) == NOW - timedelta(days=14)
    assert since_of("2026-01-31T10:00:00+01:00", NOW) == datetime(2026, 1, 31, 9, tzinfo=UTC)
    for text in ("soon", "0d", "7", "7y", "-1d", "999999w", "2026-02-02", "1066-10-14", "٧d"):
        with pytest.raises(typer.BadParameter, match="no time that has passed"):
            since_of(text, NOW)
