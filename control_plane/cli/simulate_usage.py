"""Asks a platform for its own usage, for `ebb simulate scale --from-usage`. Knows nothing of what is made of it."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from control_plane.cli.client import Api, Json

if TYPE_CHECKING:
    from control_plane.simulator.scale.usage import Told

PAGE = 1000


def fetch(api: Api, days: float) -> "Told":
    """All that the platform knows of its last days, in a few calls."""
    from control_plane.simulator.scale.usage import MOST_REQUESTS, Told  # only who simulates pays for it

    since = datetime.now(UTC) - timedelta(days=days)
    params: dict[str, Any] = {"since": since.isoformat(), "limit": PAGE}
    blocks: list[Json] = []
    many = 0
    while True:
        page = api.get("/usage/requests", params)
        blocks += page["items"]
        count = page["columns"].index("count")
        many += sum(row[count] for block in page["items"] for row in block["requests"])
        if page["next"] is None or many > 2 * MOST_REQUESTS:  # too many already: no use in reading on
            break
        params = {**params, "after": page["next"]}
    return Told(
        blocks,
        page["columns"],
        page["endings"],
        int(since.timestamp() * 1000),
        api.items("/endpoints"),
        api.items("/starts", {"limit": 500}),
        api.items("/nodes"),
        api.items("/models"),
    )
