"""`ebb usage`: what requests used, by endpoint, key, hour or day. Knows nothing of where it comes from."""

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer

from control_plane.cli.client import Api, Json
from control_plane.cli.options import DEFAULT_HOME, HomeOption, Output, OutputOption
from control_plane.cli.output import print_json, print_table, stderr

UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST = timedelta(days=3660)


class By(StrEnum):
    """What requests are summed up by."""

    endpoint = "endpoint"
    key = "key"
    hour = "hour"
    day = "day"


def since_of(text: str, now: datetime) -> datetime:
    """The moment that `--since` means: so long ago (90m, 24h, 7d, 2w), or a date in ISO 8601. Raises BadParameter."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if found is not None:
        ago = timedelta(seconds=int(found[1]) * UNITS_S[found[2]])
        if timedelta() < ago <= LONGEST:
            return now - ago
    else:
        try:
            at = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            at = now
        if now - LONGEST <= at < now:
            return at
    raise typer.BadParameter(f"'{text}' is no time that has passed. Say 90m, 24h, 7d or 2w, or a date: 2026-01-31.")


def usage(
    endpoint: Annotated[str | None, typer.Argument(help="Only of this endpoint.")] = None,
    since: Annotated[str, typer.Option("--since", metavar="7d|DATE", help="From so long ago, or from a date.")] = "7d",
    by: Annotated[By, typer.Option("--by", help="What to sum up by.")] = By.endpoint,
    home: HomeOption = DEFAULT_HOME,
    output: OutputOption = Output.table,
) -> None:
    """Show what requests used: how many, their tokens, the time to the first token, how many met a sleeping endpoint.

    Whole hours are counted, from the one in which --since lies. TTFT is that of streams. A request is counted some
    seconds after it has ended.
    """
    params: dict[str, Any] = {"since": since_of(since, datetime.now(UTC)).isoformat(), "by": str(by), "limit": 5000}
    if endpoint is not None:
        params["endpoint"] = endpoint
    with Api.open(home) as api:
        items = usages(api, params)
        names = {each["id"]: each["name"] for each in api.items("/keys")} if by is By.key and items else {}
    if output is Output.json:
        return print_json(items)
    more = {By.endpoint: (), By.key: ("key",), By.hour: ("from",), By.day: ("from",)}[by]
    columns = (
        *("endpoint", *more, "requests", "failed", "prompt", "cached", "completion"),
        *("TTFT p50", "p95", "mean", "cold"),
    )
    of = f" to '{endpoint}'" if endpoint else ""
    print_table(columns, [_row(each, by, names) for each in items], f"No request{of} was counted since {since}.")
    cold = sum(each["cold"] for each in items)
    if items:
        requests = sum(each["requests"] for each in items)
        stderr().print(f"{requests:,} requests, {cold:,} of them met an endpoint without a replica.")


def usages(api: Api, params: dict[str, Any]) -> list[Json]:
    """All items, page by page."""
    items: list[Json] = []
    after: dict[str, Any] = {}
    while True:
        page = api.get("/usage", {**params, **after})
        items += page["items"]
        if page["next"] is None:
            return items
        after = {"after": page["next"]}


def _row(item: Json, by: By, names: dict[str, str]) -> tuple[object, ...]:
    more: tuple[object, ...] = ()
    if by is By.key:
        more = (names.get(item["key"], item["key"]),)
    elif by is not By.endpoint:
        at = datetime.fromisoformat(item["at"])
        # days are UTC's
        more = (f"{at:%Y-%m-%d}" if by is By.day else f"{at.astimezone():%Y-%m-%d %H:%M}",)
    prompt = item["prompt_tokens"]
    return (
        item["endpoint"],
        *more,
        f"{item['requests']:,}",
        f"{item['failed']:,}" if item["failed"] else None,
        f"{prompt:,}",
        f"{item['cached_tokens'] / prompt:.0%}" if prompt else None,
        f"{item['completion_tokens']:,}",
        *(_seconds(item[name]) for name in ("ttft_p50_ms", "ttft_p95_ms", "mean_ms")),
        None if item["cold_share"] is None else f"{item['cold_share']:.1%}",
    )


def _seconds(ms: float | None) -> str | None:
    return None if ms is None else f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"
