"""GET /prefixes: what the prefix cache holds and how much work there is, for gateways, who wait here for news."""

import asyncio

from aiohttp import web

from data_plane.runner.journal import Journal
from data_plane.runner.served import ServedModel
from data_plane.wire.errors import invalid
from data_plane.wire.prefixes import MOST_WAIT_MS, PrefixReport, encode_report, pack_names

LEAST_INTERVAL_S = 0.1
"""Between two reports to the same gateway: while there is work there are news in every step."""


async def prefixes(http: web.Request, served: ServedModel) -> web.Response:
    """What changed since state `since` of `epoch`: at once where something has, else after `wait_ms` at most."""
    journal = served.engine.journal
    epoch = http.query.get("epoch", "")
    since = _number(http, "since", 2**62)
    wait_s = _number(http, "wait_ms", MOST_WAIT_MS) / 1000
    if epoch == journal.epoch and since <= journal.seq and wait_s:
        least_s = min(LEAST_INTERVAL_S, wait_s)
        if not journal.closed:
            await asyncio.sleep(least_s)
        await journal.wait(since, wait_s - least_s)
    body = encode_report(report(journal, epoch, since, served.slots))
    return web.Response(body=body, content_type="application/msgpack")


def report(journal: Journal, epoch: str, since: int, slots: int) -> PrefixReport:
    """The state now, as it differs from the one that is named."""
    changes, stats = journal.since(epoch, since), journal.stats
    return PrefixReport(
        journal.epoch,
        changes.seq,
        changes.full,
        pack_names(changes.stored),
        pack_names(changes.evicted),
        running=stats.running,
        waiting=stats.waiting,
        pending_tokens=stats.pending_prompt_tokens,
        kv_usage=stats.kv_usage,
        slots=slots,
        prefill_tokens_per_s=stats.prefill_tokens_per_s,
        decode_tokens_per_s=stats.decode_tokens_per_s,
        chars_per_token=journal.chars_per_token,
    )


def _number(http: web.Request, name: str, most: int) -> int:
    """A number of the query, 0 where it is not there. ApiError 400 where it is none."""
    text = http.query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise invalid(f"'{name}' must be a whole number from 0 to {most}, not {text[:40]!r}.", name, "invalid_value")
    return int(text)
