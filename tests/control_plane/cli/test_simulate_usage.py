"""`ebb simulate scale --from-usage`, over a stub of a platform."""

import json
from typing import Any

from control_plane.usage.schemas import COLUMNS
from data_plane.wire.usage import ENDINGS
from tests.control_plane.cli.conftest import Reply, StubPlatform
from tests.fakes.usage import HOURLY, MODEL, NODE, endpoint, start


def test_the_command(ebb: Any, platform: StubPlatform) -> None:
    pages = [
        Reply(body={"items": [block], "next": after, "columns": COLUMNS, "endings": ENDINGS})
        for block, after in (
            ({"id": 4, "endpoint": "chat", "key": "k", "requests": HOURLY[:15]}, 4),
            ({"id": 9, "endpoint": "chat", "key": "k", "requests": HOURLY[15:]}, None),
        )
    ]
    listings = {"endpoints": [endpoint()], "starts": [start(0.4)], "nodes": [NODE], "models": [MODEL]}
    for name, items in listings.items():
        platform.on(f"GET /api/v1/{name}", Reply(body={"items": items}))
    platform.on("GET /api/v1/usage/requests", *pages)
    result = ebb("simulate", "scale", "--from-usage", "--days", "3000", "-o", "json")
    assert result.code == 0, result.err
    figures = json.loads(result.out)["policies"]
    assert [one["policy"] for one in figures] == [
        *("as-deployed", "ebb", "constant:60", "constant:300", "constant:900", "knative")
    ]
    assert "after=4" in platform.asked[1][0]
    platform.on("GET /api/v1/usage/requests", *pages)
    table = ebb("simulate", "scale", "--from-usage", "--days", "3000", "--policies", "as-deployed")
    assert "own usage: 30 requests to 1 endpoints" in table.err and "a start takes 0.40 s" in table.err
    for wrong in (["--from-usage", "--trace", "x.csv"], [], ["--trace", "x.csv"]):
        assert ebb("simulate", "scale", *wrong).code == 2
    empty = Reply(body={"items": [], "next": None, "columns": COLUMNS, "endings": ENDINGS})
    platform.on("GET /api/v1/usage/requests", empty)
    refused = ebb("simulate", "scale", "--from-usage")
    assert refused.code == 1 and "needs at least 10" in refused.err
